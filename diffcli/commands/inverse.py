"""`diffcli sample task=inpaint|colorize|superres|deblur|denoise|operator`: what was measured, and what the samples say of it."""

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffcli.advice import nearest
from diffcli.commands.build import build, check_type, locate
from diffcli.commands.common import chosen, typed
from diffcli.commands.measured import Inputs, read
from diffcli.commands.model import Model
from diffcli.commands.own_file import OwnFunction
from diffcli.commands.run_folder import say
from diffcli.data.inputs import files
from diffcli.data.masks import SHAPES, known_of, transparent
from diffcli.data.pictures import is_image
from diffcli.data.transform import Identity, Transform
from diffcli.diffusion.inverse import Custom, Mask, Operator
from diffcli.errors import UsageError
from diffcli.randomness import ItemNoise
from diffcli.sampling import Conditions

OWN = {"noise": float, "measured": bool, "mask": str, "size": float, "known": list[int] | None, "file": str | None}
EACH = 8  # samples of each input


@dataclass
class Problem:
    """An inverse problem `y = A(x0) + noise n` in model space: of each of N items y (N, *M), and x0 (N, *S) where it is known.

    transform: between y and source units, where y is in those of the items.
    """

    name: str
    operator: Operator
    noise: float
    y: Tensor
    original: Tensor | None
    each: int
    transform: Transform

    @property
    def parts(self) -> dict[str, object]:
        """What a guidance is built with beside its own settings."""
        return {"operator": copy.deepcopy(self.operator), "noise": self.noise}


def inverse(model: Model) -> Problem | None:
    """The problem that the settings `task` and `input` pose; n and the samples' measurements become those of the model.

    Raises UsageError for what does not go with the model or with each other.
    """
    config, node = model.config, model.config.get("task")
    if not node:
        return _refuse_without_task(model)
    name = chosen("task")
    _check(model, name, node)
    operator = _operator(model, node)
    inputs = read(model, operator, node)
    noise, y = float(node["noise"]), inputs.y
    if y is None:
        y = operator(inputs.x)
        if noise:
            y = y + noise * ItemNoise(config["seed"], range(len(y)), y.shape[1:], y.dtype)("measurement")
        y = _hidden(y, operator)
    each = config["each"] = config["each"] or EACH
    config["n"], config["inputs"] = len(y) * each, len(y)
    given = Conditions(each, measurement=y)
    model.given = given if model.given is None else model.given | given
    units = model.data.transform if not isinstance(operator, Custom) else Identity()
    say(f"task={name}: {_words(len(y), inputs)}, {each} samples of each" + (f", noise {noise:g}" if noise else ""))
    return Problem(name, operator, noise, y, inputs.x if inputs.y is None else None, each, units)


def _words(count: int, inputs: Inputs) -> str:
    kind = "measurement" if inputs.y is not None else "input"
    return f"{count} {kind}{'s' if count > 1 else ''} ({inputs.source})"


def _hidden(y: Tensor, operator: Operator) -> Tensor:
    """y with nothing where nothing is known, so that no file holds what was measured there."""
    return y if operator.known is None else torch.where(operator.known, y, 0.0)


def _check(model: Model, name: str, node: dict) -> None:
    config = model.config
    for key, kind in OWN.items():
        if key in node:
            check_type(node[key], kind, f"task.{key}")
    if node.get("noise", 0.0) < 0:
        raise UsageError(f"task.noise must be at least 0, got {node['noise']:g}")
    guidance = chosen("guidance")
    target = (config.get("guidance") or {}).get("_target_")
    if target is None or "operator" not in inspect.signature(locate(target, "guidance")).parameters:
        raise UsageError(
            f"guidance={guidance} knows nothing of a measurement, and task={name} is one",
            "guidance=posterior, or leave it out",
        )
    if config["guidance"].get("method") == "repaint":
        raise UsageError(
            "RePaint is replacement under a sampler that resamples", "guidance.method=replacement sampler=resample"
        )
    if typed("n="):
        raise UsageError(
            f"n={config['n']}: task={name} draws `each` samples of each input", "each=8, with inputs=4 or input=FILE"
        )
    if config["start"] is not None:
        raise UsageError(f"start= does not go with task={name}: it sets n", "task=denoise for items with noise on them")
    if model.condition == "image":
        raise UsageError(
            f"{model.source} is given a picture itself, and input= is that",
            f"a model of single pictures for task={name}",
        )
    if config["input"] is not None and typed("inputs="):
        raise UsageError(f"inputs={config['inputs']} counts test items, and input= names your own", "one of the two")


def _refuse_without_task(model: Model) -> None:
    target = (model.config.get("guidance") or {}).get("_target_")
    if target and "operator" in inspect.signature(locate(target, "guidance")).parameters:
        raise UsageError(
            f"guidance={chosen('guidance')} is for a measurement, and there is none",
            "task=inpaint|colorize|superres|deblur|denoise|operator",
        )
    if typed("inputs="):
        raise UsageError("inputs= counts the items that a task measures", "task=inpaint|superres|deblur|…, or n=")
    if typed("each=") and model.condition != "image" and model.side is None:
        raise UsageError(
            "each= counts the samples of each input, and there are no inputs",
            "n= counts the samples in all; task=inpaint|superres|… has inputs",
        )


def _operator(model: Model, node: dict) -> Operator:
    """The operator of the task's node, set up for the model's items; its mask and its function are read here."""
    kind = locate(node["_target_"], "task")
    if not (isinstance(kind, type) and issubclass(kind, Operator)):
        raise UsageError(f"task: {node['_target_']} is no operator", "a subclass of diffcli.diffusion.inverse.Operator")
    takes, given = inspect.signature(kind).parameters, {}
    settings = {k: v for k, v in node.items() if k not in OWN or k in takes}
    if issubclass(kind, Mask):
        settings.pop("mask", None)
        given["mask"] = _mask(model, node)
    if issubclass(kind, Custom):
        if node["file"] is None:
            raise UsageError(f"task={chosen('task')} needs task.file", "task.file=op.py with a function measure(x)")
        given["fn"] = OwnFunction(node["file"])
    operator = build(settings, "task", **given)
    if issubclass(kind, Custom):
        return given["fn"].checked(operator, model.shape)
    try:
        operator.setup(model.shape)
    except ValueError as error:
        raise UsageError(f"task={chosen('task')}: {error}", _hint(chosen("task"), model.shape)) from error
    return operator


def _hint(task: str | None, shape: tuple[int, ...]) -> str:
    if is_image(shape):
        return "a model of RGB pictures" if task == "colorize" else ""
    return "task=inpaint|denoise|operator for items that are no pictures"


def _mask(model: Model, node: dict) -> Tensor:
    def draw(shape):
        return ItemNoise(model.config["seed"], [0], shape, torch.float64).uniform("mask")[0]

    mask, shapes = node["mask"], (*SHAPES, "alpha")
    if mask not in shapes and not Path(mask).expanduser().is_file():
        raise UsageError(
            f"task.mask={mask}: there is no such mask or file{nearest(mask, shapes)}",
            f"task.mask={'|'.join(shapes)}, or a file",
        )
    if mask != "alpha":
        return known_of(mask, float(node["size"]), node["known"], model.shape, draw)
    if not is_image(model.shape) or model.config["input"] is None:
        raise UsageError("task.mask=alpha is the transparent part of a picture", "input=FILE.png, or task.mask=square")
    masks = [transparent(path, *model.shape[1:]) for path in files(model.config["input"])]
    if any(not torch.equal(mask, masks[0]) for mask in masks):
        raise UsageError("task.mask=alpha: the pictures are transparent in different places", "one of them at a time")
    if masks[0].all() or not masks[0].any():
        raise UsageError("task.mask=alpha: the picture is wholly transparent, or nowhere, at the model's size")
    return ~masks[0]
