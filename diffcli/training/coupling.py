"""Which noise an item of the batch meets: (x0 (B, *S), eps (B, *S), draw, label (B,)) -> (x0, eps), both marginals kept."""

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
    """Pairs the batch with its noise; all its randomness comes from `draw`.

    label: what the model is told of each item, -1 for nothing; the noise stays independent of it, as it is in sampling.
    """

    @abstractmethod
    def __call__(self, x0: Tensor, eps: Tensor, draw, label: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def setup(self, denoiser: Denoiser, data: TrainingSet) -> None:
        """Called once, before any work.  Raises UsageError or ValueError where the coupling does not fit them."""


class Independent(Coupling):
    """Each item with its own independent noise: conditional flow matching.  Lipman et al. 2023, arXiv:2210.02747."""

    def __call__(self, x0, eps, draw, label=None):
        return x0, eps


class OptimalTransport(Coupling):
    """The permutation of the batch's noise with the least `sum ||x0_i - eps_pi(i)||^2`, solved exactly in float64.

    batch_size: of which it is solved; a larger one comes nearer to the transport of the whole, at a cost of its cube.
    Items with labels are matched with the noise of those with the same one: across labels the noise would tell them, and
    samples of a label, which start from all of it, would be off.  Raises ValueError unless batch_size >= 2, in `setup` for a
    condition that is no label.
    Tong et al. 2024, sec. 3.2.2, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772;
    Cheng & Schwing 2025, arXiv:2503.10636 (of conditions).
    """

    def __init__(self, batch_size: int = 64):
        if batch_size < 2:
            raise ValueError(
                f"optimal transport matches items of a batch, batch_size must be at least 2, got {batch_size}"
            )

    def setup(self, denoiser, data):
        if data.condition not in ("none", "label"):
            raise UsageError(
                f"coupling=ot would make the noise tell the {data.condition} of its item, of which samples know nothing",
                "loss=flow coupling=independent",
            )

    def __call__(self, x0, eps, draw, label=None):
        from scipy.optimize import linear_sum_assignment

        # ||x - e||^2 and -x.e have the same minimiser over permutations
        cost = -(x0.detach().double().flatten(1) @ eps.double().flatten(1).T)
        cost, order = cost.cpu().numpy(), torch.empty(len(x0), dtype=torch.int64)
        told = torch.zeros(len(x0)) if label is None else label.cpu()
        for one in told.unique():
            rows = (told == one).nonzero()[:, 0]
            order[rows] = rows[linear_sum_assignment(cost[rows][:, rows])[1]]
        return x0, eps[order.to(eps.device)]


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
        if data.condition != "none":
            raise UsageError(
                f"coupling=reflow makes its own items, which have no {data.condition}", "condition=none, or coupling=ot"
            )
        if self.ckpt is None:
            raise UsageError("coupling=reflow starts from a trained model", "ckpt=RUN/checkpoints/last.ckpt")
        content = checkpoint.read(self.ckpt)
        if content["config"].get("source") is not None:
            raise UsageError(
                f"{self.ckpt} starts from the items of a source, not from noise", "ckpt= of a model from noise"
            )
        shape = tuple(content["shape"])
        if shape != tuple(data.shape):
            raise UsageError(f"{self.ckpt} makes items of shape {shape}, the data's is {tuple(data.shape)}")
        self.teacher = checkpoint.load_denoiser(self.ckpt)
        if not self.teacher.sde.is_process:
            raise UsageError(
                f"{self.ckpt} is a model of one noise level, which leads nowhere", "ckpt= of a whole process"
            )

    def __call__(self, x0, eps, draw, label=None):
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
