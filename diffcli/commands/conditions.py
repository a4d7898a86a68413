"""What a command tells the network of each item: `label=7`, `label=cat`, `label=all`, `vector=[0.1,0.2]`."""

import torch

from diffcli.advice import nearest
from diffcli.commands.guidance import label_names
from diffcli.commands.model import Model
from diffcli.commands.pairs import image_conditions
from diffcli.errors import UsageError
from diffcli.sampling import Conditions


def conditions(model: Model) -> Conditions | None:
    """The conditions of the samples that the settings `label` and `vector` ask for; None for none of them.

    label: a name, a number, a list of them or all; sample i has entry `i mod N`.  Raises UsageError for what the model does
    not take.
    """
    config, found = model.config, Conditions()
    if config.get("label") is not None:
        found |= Conditions(label=torch.tensor(labels(config["label"], model)))
    if model.condition == "image":
        found |= image_conditions(model)
    return found if found.tables else None


def labels(wish, model: Model) -> list[int]:
    """The labels that `label=` names, each by its name, else by its number; -1 is none."""
    names = label_names(model)
    if not names:
        raise UsageError(
            f"label={wish}: {model.source} takes no label",
            "diffcli train condition=label, or network=exact data=mixture",
        )
    if wish == "all":
        return list(range(len(names)))
    if wish == []:
        raise UsageError("label=[] names no label", f"label=all, or label={names[0]}")
    return [_label(one, names) for one in (wish if isinstance(wish, list) else [wish])]


def _label(wish, names: list[str]) -> int:
    text = str(wish)
    if text in names:
        return names.index(text)
    if text == "none":
        return -1
    if isinstance(wish, int) and not isinstance(wish, bool) and 0 <= wish < len(names):
        return wish
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    raise UsageError(
        f"there is no label {text!r}{nearest(text, names)}", f"label={names[0]}, of: {shown}; or label=all"
    )
