"""The divergence of a field, exactly or by random probes."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffcli.diffusion.numeric import require

NOISES = ("rademacher", "gaussian")
ON_CPU = 2.0**25  # bytes: measured on a U-Net, more products at once are slower there than one after another


class Divergence(ABC):
    """An estimate of `div u = sum_i du_i/dx_i`, in `columns` columns an item whose mean it is.

    memory: bytes that products taken at once may need, each being reckoned at what the graph of u keeps for it; on a CPU
    they take no more than `ON_CPU`.
    Raises ValueError unless memory > 0.
    """

    columns: int

    def __init__(self, memory: float = 2.0**30):
        require(memory > 0, f"memory must be above 0, got {memory}")
        self.memory = float(memory)

    @abstractmethod
    def probes(self, x: Tensor, noise) -> Tensor | None:
        """What is fixed along a trajectory; `noise` is an ItemNoise of the items x (B, *S)."""

    @abstractmethod
    def __call__(self, fn, x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """u = fn(x) (B, *S), and the estimates of its divergence (B, columns) in float64."""


class ExactDivergence(Divergence):
    """`div u = sum_i du_i/dx_i` by d vector-Jacobian products, for any event shape."""

    columns = 1

    def probes(self, x, noise):
        return None

    def __call__(self, fn, x, probes):
        graph, d = Graph(fn, x, self.memory), x[0].numel()
        total = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
        for start in range(0, d, graph.chunk):
            rows = torch.arange(start, min(start + graph.chunk, d), device=x.device)
            basis = torch.nn.functional.one_hot(rows, d).to(x)[:, None].expand(-1, x.shape[0], -1)
            columns = graph.products(basis.reshape(len(rows), *x.shape))
            diagonal = columns.flatten(2).gather(2, rows.view(-1, 1, 1).expand(-1, x.shape[0], 1))
            total += diagonal.double().sum(0)
        return graph.u.detach(), total


class Hutchinson(Divergence):
    """`div u ~ (1/K) sum_k e_k^T (du/dx) e_k`, E e e^T = I, fixed along a trajectory; one column a probe.

    noise: of the probes, rademacher (the least variance of all with independent entries) or gaussian, whose quadratic forms
    are so skewed in two dimensions that 95 % intervals from 8 of them cover 88 %.
    Raises ValueError if probes < 1, and for another noise.
    Hutchinson 1990; Grathwohl et al. 2019, sec. 3.1, arXiv:1810.01367.
    """

    def __init__(
        self, probes: int = 8, noise: Literal["rademacher", "gaussian"] = "rademacher", memory: float = 2.0**30
    ):
        super().__init__(memory)
        require(probes >= 1, f"probes must be at least 1, got {probes}")
        require(noise in NOISES, f"noise must be one of {', '.join(NOISES)}, got {noise}")
        self.columns, self.noise = probes, noise

    def probes(self, x, noise):
        if self.noise == "rademacher":
            return noise.signs("probes", self.columns).to(x)
        return torch.stack([noise(f"probe {k}") for k in range(self.columns)], dim=1).to(x)

    def __call__(self, fn, x, probes):
        graph, columns = Graph(fn, x, self.memory), []
        for some in probes.transpose(0, 1).split(graph.chunk):
            columns.append((graph.products(some) * some).flatten(2).sum(2, dtype=torch.float64))
        return graph.u.detach(), torch.cat(columns).T


class Graph:
    """u = fn(x) with what differentiates it, and how many products with its Jacobian fit in `memory` bytes at once.

    A product propagates a gradient through all that the graph has kept, so it is reckoned at as many bytes.
    """

    def __init__(self, fn, x: Tensor, memory: float):
        kept = {}

        def pack(a: Tensor) -> Tensor:
            kept[a.data_ptr()] = a.numel() * a.element_size()
            return a.detach()  # itself, it would hold the graph that holds it, and never be freed

        # of attention, the fused kernels can be neither vectorised over products nor differentiated twice
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self.x = x.detach().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
                self.u = fn(self.x)
        need = max(sum(kept.values()), x.numel() * x.element_size())
        self.chunk = max(1, int((min(memory, ON_CPU) if x.device.type == "cpu" else memory) // need))
        self.batched = True

    def products(self, vectors: Tensor) -> Tensor:
        """`v^T du/dx` for every v of (c, B, *S): at once, or one by one where an operation of fn has no batching rule."""
        if self.batched and len(vectors) > 1:
            try:
                return self._grad(vectors, is_grads_batched=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # whatever else is wrong with it is raised below again
                self.batched = False
        return torch.stack([self._grad(v) for v in vectors])

    def _grad(self, vectors: Tensor, is_grads_batched: bool = False) -> Tensor:
        if not self.u.requires_grad:  # a field that does not depend on x
            return torch.zeros_like(vectors)
        (found,) = torch.autograd.grad(
            self.u, self.x, vectors, retain_graph=True, is_grads_batched=is_grads_batched, materialize_grads=True
        )
        return found
