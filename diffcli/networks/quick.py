"""A network in the form that evaluates fastest: compiled, and its products in bfloat16."""

import torch
from torch import Tensor, nn


class Quick(nn.Module):
    """The network inside, evaluated by `torch.compile`'s code, in bfloat16 where that is safe (autocast), or both.

    compiled: at its first evaluation, in each process anew.  Where a gradient is wanted, and in a function transform (jvp,
    vmap), which compiled code knows nothing of, the network is evaluated as it is: the products that a divergence takes are
    a tenth faster compiled, and take a minute to compile.
    bf16: what comes in and goes out keeps its type; a result is rounded to some 0.3 %.
    """

    def __init__(self, network: nn.Module, compiled: bool = False, bf16: bool = False):
        super().__init__()
        self.inner, self.compiled, self.bf16 = network, compiled, bf16
        self.code = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"code": None}  # another process compiles it itself

    def forward(self, x: Tensor, c_noise: Tensor, **cond) -> Tensor:
        wanted = torch.is_grad_enabled() and (x.requires_grad or c_noise.requires_grad)
        if not self.compiled or wanted or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return self._evaluate(x, c_noise, **cond)
        if self.code is None:
            self.code = torch.compile(self._evaluate)
        with torch.no_grad():  # in one mode, or it would be compiled for each
            return self.code(x, c_noise, **cond)

    def _evaluate(self, x: Tensor, c_noise: Tensor, **cond) -> Tensor:
        if not self.bf16:
            return self.inner(x, c_noise, **cond)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.inner(x, c_noise, **cond).to(x.dtype)
