"""Which noise an item of the batch meets: (x0 (B, *S), eps (B, *S), draw) -> (x0, eps), both marginals kept."""

from abc import abstractmethod

import torch
from torch import Tensor

from diffcli import checkpoint
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss import TrainingSet
from diffcli.diffusion.ode import FixedStep, pf_ode
from diffcli.errors import UsageError
from diffcli.randomness import ItemNoise, key
from diffcli.sampling import batches

TEACHER_BATCH = 1024


class Coupling:
    """Pairs the batch with its noise; all its randomness comes from `draw`."""

    @abstractmethod
    def __call__(self, x0: Tensor, eps: Tensor, draw) -> tuple[Tensor, Tensor]: ...

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        """Called once, before any work.  Raises UsageError or ValueError where the coupling does not fit them."""


class Independent(Coupling):
    """Each item with its own independent noise: conditional flow matching.  Lipman et al. 2023, arXiv:2210.02747."""

    def __call__(self, x0, eps, draw):
        return x0, eps


class OptimalTransport(Coupling):
    """The permutation of the batch's noise with the least `sum ||x0_i - eps_pi(i)||^2`, solved exactly in float64.

    batch_size: of which it is solved; a larger one comes nearer to the transport of the whole, at a cost of its cube.
    Raises ValueError unless batch_size >= 2.  Tong et al. 2024, sec. 3.2.2, arXiv:2302.00482; Pooladian et al. 2023,
    arXiv:2304.14772.
    """

    def __init__(self, batch_size: int = 64):
        if batch_size < 2:
            raise ValueError(
                f"optimal transport matches items of a batch, batch_size must be at least 2, got {batch_size}"
            )

    def __call__(self, x0, eps, draw):
        from scipy.optimize import linear_sum_assignment

        # ||x - e||^2 and -x.e have the same minimiser over permutations
        cost = -(x0.detach().double().flatten(1) @ eps.double().flatten(1).T)
        _, order = linear_sum_assignment(cost.cpu().numpy())
        return x0, eps[torch.as_tensor(order, device=eps.device)]


class Reflow(Coupling):
    """Pairs of a trained model: eps, and x0 where its own PF-ODE ends that starts from `prior_std eps` at t_max.

    A pool of `pairs` is made when the first batch comes, by RK4 with `steps` equal steps in lam, as a function of the seed;
    the batches draw from it, and the data are no longer looked at.  ckpt: the model, with its averaged weights.
    Raises ValueError for pairs < 1 or steps < 1; in `setup` UsageError without ckpt and for a model of another shape or of
    one noise level, CheckpointError for an unfit file.  Liu et al. 2023, sec. 2.2, arXiv:2209.03003.
    """

    def __init__(self, ckpt: str | None = None, pairs: int = 10_000, steps: int = 32, seed: int = 0):
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        self.ckpt, self.pairs, self.seed = ckpt, pairs, key(seed, "reflow")
        self.solver = FixedStep("rk4", steps)
        self.teacher: Denoiser | None = None
        self.pool: tuple[Tensor, Tensor] | None = None

    def setup(self, denoiser, data):
        if self.ckpt is None:
            raise UsageError("coupling=reflow starts from a trained model", "ckpt=RUN/checkpoints/last.ckpt")
        shape = tuple(checkpoint.read(self.ckpt)["shape"])
        if shape != tuple(data.shape):
            raise UsageError(f"{self.ckpt} makes items of shape {shape}, the data's is {tuple(data.shape)}")
        self.teacher = checkpoint.load_denoiser(self.ckpt)
        if not self.teacher.sde.is_process:
            raise UsageError(
                f"{self.ckpt} is a model of one noise level, which leads nowhere", "ckpt= of a whole process"
            )

    def __call__(self, x0, eps, draw):
        if self.pool is None:
            with torch.autocast(x0.device.type, enabled=False):
                self.pool = self._make(x0.shape[1:], x0.device)
        i = (draw.uniform("pairs", (len(x0),), torch.float64) * self.pairs).long()
        x0, eps = (a[i.to(a.device)].to(eps) for a in self.pool)
        return x0, eps

    @torch.no_grad()
    def _make(self, shape, device) -> tuple[Tensor, Tensor]:
        teacher = self.teacher.to(device)
        ends = teacher.sde.lam(torch.tensor([teacher.sde.t_max, teacher.sde.t_min], dtype=torch.float64)).tolist()
        made = []
        for items in batches(self.pairs, TEACHER_BATCH):
            eps = ItemNoise(self.seed, items, shape, device=device)(0)
            (x0,), _ = self.solver.solve(pf_ode(teacher), (teacher.sde.sample_prior(eps),), *ends)
            made.append((x0, eps))
        self.teacher = None
        x0, eps = (torch.cat(a)[: self.pairs] for a in zip(*made, strict=True))
        return x0, eps
