"""Where a training stands, as its checkpoint says: what resuming takes over must fit the weights beside it."""

from torch import Tensor

from diffcli.errors import CheckpointError

COUNTS = ("global_step", "batches", "ema_updates")


def check_progress(content: dict, path) -> None:
    """Refuse counters, averages and an optimiser's state that do not belong to the weights of the same checkpoint.

    The optimiser numbers the trainable parameters in their order, which is that of the averages; its tensors are those numbers'
    shapes, or single numbers.  Raises CheckpointError with one sentence.
    """
    for name in COUNTS:
        if type(content.get(name)) is not int or content[name] < 0:
            raise CheckpointError(f"{path} does not say how far its training is ({name})")
    weights, averages = content["state_dict"], content["ema"]
    odd = [k for k, value in averages.items() if k not in weights or value.shape != weights[k].shape]
    if odd:
        raise CheckpointError(f"{path} does not fit itself: {odd[0]} in its ema is not of its weights")
    states = content["optimizer_states"]
    if not isinstance(states, list) or not all(_is_optimiser(state) for state in states):
        raise CheckpointError(f"{path} has no state of an optimiser")
    shapes = dict(enumerate(value.shape for value in averages.values()))
    shapes |= {name: value.shape for name, value in averages.items()}  # where each process holds a part of the weights
    for state in states:
        members = [k for group in state["param_groups"] for k in group["params"]]
        for k in [*members, *state["state"]]:
            if k not in shapes:
                raise CheckpointError(
                    f"{path} does not fit itself: its optimiser has a parameter {k!r} without weights"
                )
        for k, entries in state["state"].items():
            for name, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, Tensor) and value.numel() != 1 and value.shape != shapes[k]:
                    raise CheckpointError(
                        f"{path} does not fit itself: {name} of parameter {k} has shape {tuple(value.shape)}"
                    )


def _is_optimiser(state) -> bool:
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(state.get("state"), dict):
        return False
    listed = all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    return listed and all(isinstance(k, (int, str)) for group in groups for k in group["params"])
