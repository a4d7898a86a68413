"""The divergence of a field, exactly or by random probes."""

import torch
from torch import Tensor

from diffcli.diffusion.numeric import require


class ExactDivergence:
    """`div u = sum_i du_i/dx_i` by d vector-Jacobian products, in chunks of `chunk` at once."""

    def __init__(self, chunk: int = 64):
        self.chunk = chunk

    def probes(self, x: Tensor, signs) -> None:
        return None

    def __call__(self, u: Tensor, x: Tensor, probes) -> Tensor:
        d = x[0].numel()
        total = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
        for start in range(0, d, self.chunk):
            rows = torch.arange(start, min(start + self.chunk, d), device=x.device)
            basis = torch.nn.functional.one_hot(rows, d).to(u.dtype)  # (c, d)
            basis = basis[:, None].expand(-1, x.shape[0], -1).reshape(len(rows), *x.shape)
            (columns,) = torch.autograd.grad(u, x, basis, is_grads_batched=True, retain_graph=True)
            diagonal = columns.flatten(2).gather(2, rows.view(-1, 1, 1).expand(-1, x.shape[0], 1))
            total += diagonal.double().sum(0)
        return total


class Hutchinson:
    """`div u ~ (1/K) sum_k e_k^T (du/dx) e_k` with Rademacher probes, fixed along a trajectory; one column a probe.

    Hutchinson 1990; Grathwohl et al. 2019, sec. 3.1, arXiv:1810.01367.  Raises ValueError if probes < 1.
    """

    def __init__(self, probes: int = 8):
        require(probes >= 1, f"probes must be at least 1, got {probes}")
        self.count = probes

    def probes(self, x: Tensor, signs) -> Tensor:
        return signs("probes", self.count).to(x)

    def __call__(self, u: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        columns = []
        for k in range(self.count):
            (vjp,) = torch.autograd.grad(u, x, probes[:, k], retain_graph=k + 1 < self.count)
            columns.append((vjp * probes[:, k]).double().flatten(1).sum(1))
        return torch.stack(columns, dim=1)
