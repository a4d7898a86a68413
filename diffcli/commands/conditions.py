"""What a command tells the network of each item: `label=7`, `label=cat`, `label=all`, `vector=[0.1,0.2]`."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from diffcli.advice import nearest
from diffcli.commands.common import typed
from diffcli.commands.guidance import label_names
from diffcli.commands.model import Model
from diffcli.commands.pairs import image_conditions
from diffcli.commands.partial import CHUNK, save_chunks
from diffcli.commands.run_folder import say
from diffcli.data.array import load_array
from diffcli.errors import UsageError
from diffcli.sampling import Conditions
from diffcli.writing import whole

SETTINGS = {"label": "label", "vector": "vector", "image": "input"}  # condition -> what a command calls it
NAMED = 12  # labels that a refusal lists


def conditions(model: Model) -> Conditions | None:
    """The conditions of the samples that the settings `label` and `vector` ask for; None for none of them.

    label: a name, a number, a list of them or all; vector: a list of numbers, or a file of them.  Sample i has entry
    `i mod N`.  Raises UsageError for what the model does not take, and for none where it was never told nothing.
    """
    config, found = model.config, Conditions()
    if config.get("label") is not None or _null_is_a_name(model):
        found |= Conditions(label=torch.tensor(labels(config["label"], model)))
    if config.get("vector") is not None:
        found |= Conditions(vector=vectors(config["vector"], model))
    if model.condition == "image":
        found |= image_conditions(model)
    _check_none(model, found)
    return found if found.tables else None


def labels(wish, model: Model) -> list[int]:
    """The labels that `label=` names, each by its name, else by its number; -1 is none."""
    names = label_names(model)
    if not names:
        raise UsageError(
            f"label={wish}: {model.source} takes no label",
            f"{SETTINGS[model.condition]}=VALUE"
            if model.condition != "none"
            else "diffcli train condition=label, or guidance=classifier guidance.ckpt=PATH",
        )
    if wish == "all" and "all" not in names:
        return list(range(len(names)))
    if wish == []:
        raise UsageError("label=[] names no label", f"label=all, or label={names[0]}")
    return [_label(one, names) for one in (wish if isinstance(wish, list) else [wish])]


def _label(wish, names: list[str]) -> int:
    # Hydra reads true, null and 1.0 as values; a class may have such a name
    text = "null" if wish is None else str(wish)
    if text in names:
        return names.index(text)
    alike = [i for i, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(alike) == 1:
        return alike[0]
    if text.casefold() == "none":
        return -1
    number = int(text) if isinstance(wish, str) and text.isascii() and text.isdecimal() else wish
    if type(number) is int and 0 <= number < len(names):
        return number
    shown = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    raise UsageError(
        f"there is no label {text!r}{nearest(text, names)}", f"label={names[0]}, of: {shown}; or label=all, label=none"
    )


def _null_is_a_name(model: Model) -> bool:
    return typed("label=") and "null" in model.class_names


def check_own_labels(model: Model) -> None:
    """Raise UsageError where the labels of the data are not those that the model knows."""
    theirs, ours = list(model.data.class_names), label_names(model)
    if not theirs:
        raise UsageError("label=own: these data have no labels", f"label={ours[0]}, or the data trained on")
    if theirs != ours:
        said = (", ".join(names[:4]) for names in (theirs, ours))
        raise UsageError("label=own: the data's labels are {}, …, the model knows {}, …".format(*said), "label=NAME")


def own_labels(model: Model, y: Tensor) -> Tensor:
    """The labels y (B,) of items as they are.  Raises UsageError for none where the model was always told one."""
    if not model.drop and bool((y < 0).any()):
        raise UsageError(f"label=own: items without a label, and {model.always_told}", "label=NAME")
    return y


def vectors(wish: list | str, model: Model) -> Tensor:
    """The vectors (N, k) that `vector=` gives: one as a list, several as a list of lists or a .npy."""
    if model.condition != "vector":
        fits = (
            f"{SETTINGS[model.condition]}=VALUE"
            if model.condition != "none"
            else "diffcli train condition=vector data=array"
        )
        raise UsageError(f"vector={wish}: {model.source} takes no vector", fits)
    k = model.vector
    if isinstance(wish, str):
        if not wish.endswith(".npy"):
            raise UsageError(f"vector={wish} is neither a list of numbers nor a .npy", f"vector=[{', '.join('0' * k)}]")
        table = load_array(wish)
    else:
        try:
            table = torch.tensor(wish, dtype=torch.float64)
        except (ValueError, TypeError):
            raise UsageError(f"vector={wish} is no list of numbers", f"vector=[{', '.join('0' * k)}]") from None
        table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] != k or not len(table):
        what = f"of shape {tuple(table.shape)}" if isinstance(wish, str) else f"vector={wish}"
        raise UsageError(f"{what}: the model's vectors have {k} numbers each", f"{k} numbers, or a .npy (N, {k})")
    if not table.isfinite().all():
        raise UsageError(f"vector={wish} holds values that are not finite", "vector left out for none (∅)")
    return table


def _check_none(model: Model, found: Conditions) -> None:
    """Refuse to tell nothing where training always told something: such an embedding was never trained."""
    name = model.condition
    if name not in ("label", "vector") or model.drop:
        return
    told = found.tables.get(name)
    if told is None or (name == "label" and bool((told[0] < 0).any())):
        fits = f"label={model.class_names[0]}, or label=all" if name == "label" else "vector=[…]"
        raise UsageError(
            f"{model.always_told} and knows no {name} as nothing",
            f"{fits}; or diffcli train condition={name} drop=0.1",
        )


def as_unconditional(model: Model) -> None:
    """For a command that shows a model without conditions: say so.  Raises UsageError where it was never told nothing."""
    if model.condition != "none" and model.config.get("ckpt"):
        if not model.drop:
            raise UsageError(
                f"{model.always_told}, and this command tells it nothing",
                f"diffcli train condition={model.condition} drop=0.1",
            )
        say(f"{model.source} is conditioned on its {model.condition}: what follows is of none (∅)")


def words(model: Model) -> list[str] | None:
    """What the samples are told of their labels, by name: sample i has word `i mod N`; None without labels."""
    told = model.given.tables.get("label") if model.given is not None else None
    if told is None:
        return None
    names = label_names(model)
    return [names[k] if k >= 0 else "none" for k in told[0].tolist()]


def write_told(path: Path, model: Model, n: int) -> tuple[list[Path], dict]:
    """labels.csv or vectors.npy, what each of n samples was told; and the same in short for run.json."""
    if model.given is None:
        return [], {}
    items, tables, files, found = range(n), model.given.tables, [], {}
    if "label" in tables:
        table = tables["label"][0].tolist()
        said = words(model)
        with whole(path / "labels.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "label", "name"])
            writer.writerows([i, table[i % len(table)], said[i % len(said)]] for i in items)
        files.append(path / "labels.csv")
        found["labels"] = {word: sum(said[i % len(said)] == word for i in items) for word in dict.fromkeys(said)}
    if "vector" in tables:
        with whole(path / "vectors.npy") as file:
            parts = (model.given(items[i : i + CHUNK], torch.float64, "cpu") for i in range(0, n, CHUNK))
            save_chunks(file, n, (part["vector"].numpy() for part in parts))
        files.append(path / "vectors.npy")
        found["vectors"] = len(tables["vector"][0])
    return files, found
