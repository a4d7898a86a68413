"""From a checkpoint to the run that goes on: what it must hold, where it stood, and which settings take the place of its own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffcli.errors import CheckpointError

HELD = {  # what a training that goes on reads beside the weights
    "global_step": int,
    "batches": int,
    "ema_updates": int,
    "best": float,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}
LOOPS = "epoch_loop.batch_progress"


def check_state(content: dict, weights: Mapping[str, Tensor], trained: list[str], path: Path, other_loss: bool) -> None:
    """Refuse a checkpoint that this model's training cannot go on from, whatever is wrong with it.

    weights: of the module that will load it, by their names; trained: the names of those that the optimiser has.
    other_loss: whether the parameters of the loss (`loss.…`) may be others.  Raises CheckpointError with one sentence.
    """
    for name, kind in HELD.items():
        if type(content.get(name)) is not kind or (kind is int and content[name] < 0):
            raise CheckpointError(
                f"{path} holds a model without the state of its training (no {name})",
                "sample, nll and evaluate take it as ckpt=; a training starts anew",
            )
    _check_names(content["state_dict"], weights, path, other_loss)
    _check_names(content["ema"], {name: weights[name] for name in trained}, path, other_loss)
    try:
        began = content["loops"]["fit_loop"][LOOPS]["current"]["ready"]
        (optimiser,) = content["optimizer_states"]
        states, (group,) = optimiser["state"], optimiser["param_groups"]
        whole = type(began) is int and began >= 0 and len(group["params"]) == len(content["ema"])
        names = dict(zip(group["params"], content["ema"], strict=True)) if whole else {}
        whole = whole and all(
            _is_state(value, content["ema"][names[i]]) for i, state in states.items() for value in state.values()
        )
        whole = whole and all(type(count) is int for count in (*position(content), *rows_kept(content)))
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path} has a state of its training that does not fit its weights")


def _check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, other_loss: bool) -> None:
    names = sorted(found.keys() ^ expected.keys()) + [
        k for k in found if k in expected and found[k].shape != expected[k].shape
    ]
    odd = [name for name in names if not (other_loss and name.startswith("loss."))]
    if odd:
        what = "is unknown" if odd[0] not in expected else "is missing" if odd[0] not in found else "has another shape"
        raise CheckpointError(f"{path} does not fit its own config: {odd[0]} {what} ({len(odd)} differences in all)")


def _is_state(value, weight: Tensor) -> bool:
    """A finite number, or one tensor of a weight's size, as Adam has of each."""
    if not isinstance(value, Tensor):
        return isinstance(value, (int, float))
    return value.shape in ((), weight.shape) and bool(torch.isfinite(value).all())


def position(content: dict) -> tuple[int, int]:
    """Batches that a rank had taken, and items that all had, after the last optimiser step of a checkpoint.

    Batches of a begun accumulation are not counted: their gradients are not stored, and they are taken again.
    """
    trainer = content["config"]["trainer"]
    begun = content["loops"]["fit_loop"][LOOPS]["current"]["ready"] - content["global_step"] * _window(trainer)
    counts = [trainer.get(name) for name in ("devices", "num_nodes")]
    known = counts[0] * counts[1] if all(type(count) is int for count in counts) else 1
    each = content["config"]["batch_size"] * content.get("world_size", known)
    return content["batches"] - begun, content.get("seen", content["batches"] * each) - begun * each


def _window(trainer: dict) -> int:
    return trainer.get("accumulate_grad_batches") or 1


def rows_kept(content: dict) -> tuple[int, int]:
    """The numbers of the rows of metrics.csv from which on they are written again: of training, of validation."""
    steps = content["global_step"]
    return steps, min(content.get("validated", steps - 1) + 1, steps)


def bring_up(content: dict, module) -> list[str]:
    """Change what Lightning is about to load to the state after its last optimiser step, under the settings of now.

    The batch counters follow from the steps and the accumulation of now, the optimiser's settings are the config's, parameters of
    another loss start afresh.  Gives lines that say what could not be kept.
    """
    said = _fit_loss(content, module) + _fit_optimiser(content, module)
    steps, fit = content["global_step"], content["loops"]["fit_loop"]
    # Lightning would leave a training at its last step without a look at what remains to be done
    module.trainer.fit_loop.epoch_loop.max_steps = max(module.max_steps, steps + 1)
    if steps == 0:
        del content["loops"]
        return said
    ready = steps * module.trainer.accumulate_grad_batches
    for counts in (fit[LOOPS]["total"], fit[LOOPS]["current"]):
        # as it is where a batch ends, before its validation: Lightning then goes on with the next batch
        counts |= {"ready": ready, "started": ready, "processed": ready, "completed": ready - 1}
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1
    for counts in (fit["epoch_loop.val_loop.batch_progress"][name] for name in ("total", "current")):
        counts |= dict.fromkeys(counts, 0)
    return said


def _fit_loss(content: dict, module) -> list[str]:
    own, trained = module.state_dict(), {n: p for n, p in module.named_parameters() if p.requires_grad}
    old = list(content["ema"])
    kept = {k: v for k, v in content["state_dict"].items() if k in own and v.shape == own[k].shape}
    if kept.keys() == own.keys() and old == list(trained):
        return []
    content["state_dict"] = {k: kept.get(k, v) for k, v in own.items()}
    content["ema"] = {
        k: content["ema"][k] if k in kept and k in old else p.detach().float() for k, p in trained.items()
    }
    (optimiser,) = content["optimizer_states"]
    number = dict(zip(old, optimiser["param_groups"][0]["params"], strict=True))
    states = {i: optimiser["state"].get(number[k]) for i, k in enumerate(trained) if k in kept and k in number}
    optimiser["state"] = {i: state for i, state in states.items() if state is not None}
    optimiser["param_groups"][0]["params"] = list(range(len(trained)))
    fresh = sorted(k for k in trained if k not in kept)
    return [f"parameters of the loss that start afresh: {', '.join(fresh)}"] if fresh else []


def _fit_optimiser(content: dict, module) -> list[str]:
    probe = torch.nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    fresh = module.optim.build([probe], fused=module.fused)
    fresh.step()
    (optimiser,) = content["optimizer_states"]
    (group,) = optimiser["param_groups"]
    last = max(0, content["global_step"] - 1)  # step taken, which may have been the last of all
    lr = module.optim.rate(last, module.max_steps)
    optimiser["param_groups"] = [{**fresh.defaults, "lr": lr, "params": group["params"]}]
    if all(state.keys() == fresh.state[probe].keys() for state in optimiser["state"].values()):
        return []
    optimiser["state"] = {}
    return [f"{type(fresh).__name__} cannot take up the state of the optimiser before it and starts with none"]


def validate_if_due(module, resumed_at: int | None) -> None:
    """Do the validation that the run's interruption left out, where one follows the step that it goes on from."""
    trainer = module.trainer
    trainer.fit_loop.epoch_loop.max_steps = module.max_steps
    if not resumed_at or module.validated >= resumed_at - 1 or not trainer.enable_validation:
        return
    if resumed_at * trainer.accumulate_grad_batches % trainer.val_check_batch:
        return
    validate(trainer)


def validate(trainer) -> None:
    """A validation now, while it trains."""
    loop, first = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector._first_loop_iter
    trainer.validating, loop.restarting = True, False
    loop.run()
    trainer.training, trainer._logger_connector._first_loop_iter = True, first
