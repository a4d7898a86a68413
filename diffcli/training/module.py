"""The Lightning modules: what every training step shares, and that of a denoiser and a loss."""

import math
from abc import abstractmethod

import lightning as L
import torch
from torch import Tensor, nn

from diffcli.data.base import Data, Items
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.loss import Loss
from diffcli.randomness import Draw, key
from diffcli.training.agreement import Agreement
from diffcli.training.augment import Augment
from diffcli.training.batches import Batches
from diffcli.training.condition import Condition
from diffcli.training.data import BatchOrder, readable, val_loader
from diffcli.training.journal import Journal
from diffcli.training.optim import Optim
from diffcli.training.precision import narrow
from diffcli.training.resumption import bring_up, position, validate_if_due

VAL_ITEMS = 1024  # of the val split, each at one time and one noise that never change


class Steps(L.LightningModule):
    """The data, the optimiser and the checkpoints of a training; a subclass has the model, the loss and the two steps.

    All randomness of a step is a function of (seed, batch, rank, purpose); `meta` goes into every checkpoint.
    """

    loss: nn.Module
    calmer = "a smaller optim.lr, or trainer.gradient_clip_val"  # where the gradient is not finite
    lag: int | None = None  # see `behind`; by default 1 on a GPU, which must not run dry, else 0

    def __init__(
        self,
        data: Data,
        optim: Optim,
        max_steps: int,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        resident: float = math.inf,
        augment: Augment | None = None,
        dequantize: bool = True,
        meta: dict | None = None,
        agreement: Agreement | None = None,
    ):
        super().__init__()
        self.data, self.optim, self.max_steps = data, optim, max_steps
        self.batch_size, self.seed, self.workers, self.meta = batch_size, seed, workers, meta or {}
        self.resident, self.augment = resident, augment or Augment(data)
        self.feed: Batches | None = None
        self.dequantize = dequantize and data.transform.levels is not None
        self.batches = 0  # that this rank has taken, over all resumptions
        self.seen = 0  # items that all ranks have taken together
        self.validated = -1  # the row of metrics.csv of the last validation
        self._resumed_at: int | None = None
        self.agreement = agreement or Agreement()
        self.journal = Journal(self.agreement)
        self._taken: list[Tensor] = []  # the losses since the last optimiser step
        self._validation: dict[str, list[Tensor]] = {}  # figures of the items of the validation under way
        self.figures: dict[str, float] = {}  # of the last validation

    def items(self, split: str) -> Items:
        """What the batches of a split are made of."""
        return self.data.split(split)

    def train_dataloader(self):
        items = self.items("train")
        order = BatchOrder(
            len(items),
            self.batch_size,
            self.seed,
            self.global_rank,
            self.trainer.world_size,
            self.seen,
        )
        self.feed = Batches(items, order, self.device, self.workers, self.resident)
        return self.feed

    def val_dataloader(self):
        return val_loader(self.items("val"), self.batch_size, VAL_ITEMS)

    @abstractmethod
    def losses(self, batch: tuple[Tensor, Tensor], draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each item (B,), and further figures of each by the names they have in metrics.csv."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What is trained, without the loss."""

    def results(self, average) -> dict:
        """What a finished training has to say of its model, for run.json; `average()` puts the averaged weights in place."""
        return {}

    def told(self, results: dict) -> list[str]:
        """The same as lines on screen."""
        return []

    def encoded(self, x: Tensor, draw: Draw) -> Tensor:
        """Items in model space and in the dtype of the weights."""
        u = draw.uniform("dequantize", x.shape) if self.dequantize else None
        return self.data.transform.encode(x, u).to(next(self.parameters()).dtype)

    def loss_of(self, batch, number: int) -> Tensor:
        """The mean loss of this rank's batch `number`, with its own randomness."""
        draw = Draw(self.seed, number, self.global_rank, self.device, self.trainer.world_size)
        torch.manual_seed(
            key(self.seed, number, self.global_rank, "dropout") % 2**63
        )  # networks draw from the global one
        return self.losses(self.augment(*batch, draw), draw)[0].mean()

    def training_step(self, batch, _) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs have put out is used up
        loss = self.loss_of(batch, self.batches)
        self._taken.append(loss.detach())
        self.batches += 1
        self.seen += self.batch_size * self.trainer.world_size
        return loss

    def validation_step(self, batch, index: int) -> None:
        losses, more = self.losses(batch, Draw(self.seed, f"val {index}", 0, self.device))
        for name, value in {"val_loss": losses, **{f"val_{k}": v for k, v in more.items()}}.items():
            self._validation.setdefault(name, []).append(value.detach())

    def configure_optimizers(self):
        weights = [p for p in self.parameters() if p.requires_grad]  # those of the model, then those of the loss
        return self.optim.build(weights, fused=self.fused)

    @property
    def fused(self) -> bool:
        """Whether the optimiser may be one that steps in a single kernel, which 16-mixed's scaler does not allow."""
        return self.trainer.precision != "16-mixed"

    @property
    def behind(self) -> int:
        """How many steps behind the device its figures are read."""
        lag = int(self.device.type == "cuda") if self.lag is None else self.lag
        return lag if self.fused else 0  # the scaler waits for the device anyway

    def settle(self) -> None:
        """Know of all steps so far that they were finite.  Raises NumericalError on all ranks if one was not."""
        self.journal.settle(self)

    def on_train_batch_end(self, *_) -> None:
        self.journal.end(self.trainer, self.feed.waited)

    def on_validation_model_eval(self) -> None:
        self.settle()  # before the averages take the place of the weights
        super().on_validation_model_eval()

    def on_before_optimizer_step(self, optimizer) -> None:
        self._norm = torch.nn.utils.get_total_norm([p.grad for p in self._graded()])
        size = torch.nn.utils.get_total_norm([p.detach() for p in self.parameters()])
        figures = torch.stack([torch.stack(self._taken).mean(), self._norm, size])
        window, self._taken = len(self._taken), []
        lr = self.optim.rate(self.trainer.global_step, self.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        figures = figures.to(torch.promote_types(figures.dtype, torch.float32))
        self.journal.take(self, optimizer, figures, window, lr, self.behind)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Lightning's clipping, which refuses a fused optimiser under any mixed precision; the norm is known already."""
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._graded(), gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self._graded(), gradient_clip_val, self._norm)

    def _graded(self) -> list[Tensor]:
        return [p for p in self.parameters() if p.grad is not None]

    def on_before_batch_transfer(self, batch, _):
        return readable(batch)

    def setup(self, stage: str) -> None:
        narrow(self.trainer, self)

    def on_train_start(self) -> None:
        validate_if_due(self, self._resumed_at)

    def on_validation_epoch_end(self) -> None:
        found, self._validation = self._validation, {}
        if self.agreement.leaving:
            return  # broken off: no figure rather than one of fewer items
        means = {name: torch.cat(values).mean() for name, values in found.items()}
        self.log_dict(means, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.figures = {name: self.trainer.strategy.reduce(mean).item() for name, mean in means.items()}
            self.validated = self.trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        place = {"batches": self.batches, "seen": self.seen, "validated": self.validated}
        checkpoint |= self.meta | place | {"world_size": self.trainer.world_size}
        checkpoint |= {"spike": self.journal.spike.state(), "figures": self.figures}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self._resumed_at = checkpoint["global_step"]
        self.batches, self.seen = position(checkpoint)
        self.validated = checkpoint.get("validated", self._resumed_at - 1)
        if "spike" in checkpoint:
            self.journal.spike.restore(checkpoint["spike"])
            self.figures = checkpoint["figures"]
        for line in bring_up(checkpoint, self):
            if self.trainer.is_global_zero:
                print(line, flush=True)


class Training(Steps):
    """Minimises the mean of `loss` over items, divided by the number of dimensions; with a condition, given what it says.

    Validation drops no condition.
    """

    calmer = "a smaller optim.lr, trainer.gradient_clip_val, or another loss.weight"

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        data: Data,
        optim: Optim,
        *args,
        condition: Condition | None = None,
        **kwargs,
    ):
        super().__init__(data, optim, *args, **kwargs)
        self.denoiser, self.loss, self.condition = denoiser, loss, condition

    def items(self, split):
        items = super().items(split)
        return items if self.condition is None else self.condition.items(items)

    @property
    def model(self):
        return self.denoiser

    def losses(self, batch, draw):
        x0 = self.encoded(batch[0], draw)
        dropping = draw if self.denoiser.training else None
        given = {} if self.condition is None else self.condition(batch[1], x0, dropping)
        return self.loss(self.denoiser, x0, draw, **given) / x0[0].numel(), {}
