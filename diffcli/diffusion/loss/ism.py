"""Implicit score matching with the exact trace."""

import torch
from torch import Tensor

from diffcli.diffusion.loss.noised import Implicit

CHUNK = 16  # rows of the Jacobian at once


class ISM(Implicit):
    """`w [tr(grad_x s_theta) + 1/2 ||s_theta||^2]`, the trace by d vector-Jacobian products.  Hyvärinen 2005, thm. 1."""

    def bracket(self, score, x, draw, graph):
        return trace(score, x, graph) + 0.5 * score.flatten(1).square().sum(1)


def trace(score: Tensor, x: Tensor, graph: bool) -> Tensor:
    """`tr(ds/dx)` (B,) of score (B, *S) at x, CHUNK rows of the Jacobian at once; graph: whether it is differentiated again."""
    flat, d = score.flatten(1), x[0].numel()
    total = score.new_zeros(x.shape[0])
    for first in range(0, d, CHUNK):
        rows = torch.arange(first, min(first + CHUNK, d), device=x.device)
        basis = torch.nn.functional.one_hot(rows, d).to(flat.dtype)[:, None].expand(-1, len(x), -1)  # (c, B, d)
        (found,) = torch.autograd.grad(flat, x, basis, create_graph=graph, retain_graph=True, is_grads_batched=True)
        total = total + (found.flatten(2) * basis).sum((0, 2))
    return total
