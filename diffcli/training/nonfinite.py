"""Why a training cannot take its next step: which figure is not finite, on which rank, and what made it so."""

import torch
from torch import Tensor

from diffcli.errors import NumericalError
from diffcli.training.data import BatchOrder

DATA = "data without nan and inf"


def finite(tensors) -> bool:
    """Whether every element of all tensors is; waits for their device once."""
    return torch.stack([torch.isfinite(x).all() for x in tensors]).all().item()


def refusal(module, step, loss: float) -> NumericalError | None:
    """The failure of all ranks, where a figure of one of them is not finite; None if it was the size of the weights alone.

    Says the step, the cause that comes first (weights, then losses and what they are of, then gradients) and the rank.
    step: its number, what had been taken when it came, and how many batches (window) it is made of, which are taken again to
    find out; of a late one the gradients are gone, and the weights still those before it.  loss: of this rank.
    """
    trainer = module.trainer
    mine = _weight(module) or _loss(module, loss, step) or _gradient(module, step)
    said = [mine]
    if trainer.world_size > 1:
        said = [None] * trainer.world_size
        torch.distributed.all_gather_object(said, mine)
    known = [(found[0], rank, *found[1:]) for rank, found in enumerate(said) if found is not None]
    if not known:
        return None
    order, rank, what, why, hint = min(known)
    place = [f"rank {rank}"] if trainer.world_size > 1 and order in (LOSS, ALONE) else []
    place = ": ".join([*place, *([why] if why else [])])
    sentence = f"{what} is not finite at step {step.number}" + (f" ({place})" if place else "")
    return NumericalError(f"{sentence}; the last checkpoint before it is kept", hint or module.calmer)


WEIGHT, LOSS, ALONE, SUMMED = range(4)  # what is said first
Found = tuple[int, str, str, str] | None


def _weight(module) -> Found:
    name = _first(dict(module.named_parameters()))
    return (WEIGHT, f"the weight {name}", "the step before made it so", "") if name else None


def _loss(module, loss: float, step) -> Found:
    if loss - loss == 0:
        return None
    for batch, index, _ in _taken(module, step):
        bad = [i for i, x in zip(index, batch[0], strict=True) if not torch.isfinite(x).all()]
        if bad:
            return LOSS, "the loss", f"item {bad[0]} of the training data holds nan or inf", DATA
    return LOSS, "the loss", "", ""


def _gradient(module, step) -> Found:
    """The gradients are summed over the ranks; those of this rank alone are known after its batches are taken again."""
    several = module.trainer.world_size > 1
    found = {} if step.late else {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    name = _first(found)
    if not step.late and not name and found and torch.nn.utils.get_total_norm(found.values()).isfinite():
        return None
    if step.late or (several and name):
        try:
            alone = _alone(module, step)
        except Exception:  # noqa: BLE001 - a second failure, of the search, must not hide the first
            alone = ""
        if alone and several:
            return ALONE, f"the gradient of {alone}", "", ""
        name = name or alone
    return SUMMED, f"the gradient of {name}" if name else "the norm of the gradient", "", ""


def _alone(module, step) -> str:
    weights = {k: p for k, p in module.named_parameters() if p.requires_grad}
    for batch, _, number in _taken(module, step):
        with module.trainer.precision_plugin.train_step_context():
            loss = module.loss_of(batch, number)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        name = _first({k: g for k, g in zip(weights, found, strict=True) if g is not None})
        if name:
            return name
    return ""


def _first(tensors: dict[str, Tensor]) -> str:
    """The name of the first that is not finite, else an empty one."""
    return next((name for name, x in tensors.items() if not torch.isfinite(x).all()), "")


def _taken(module, step):
    """This rank's batches of the step, as they were, the places of their items in the data, and the batches' numbers."""
    items, world = module.items("train"), module.trainer.world_size
    start = step.seen - step.window * module.batch_size * world
    order = iter(BatchOrder(len(items), module.batch_size, module.seed, module.global_rank, world, start))
    for number in range(step.batches - step.window, step.batches):
        index = next(order)
        yield module.trainer.strategy.batch_to_device(items.__getitems__(index)), index, number
