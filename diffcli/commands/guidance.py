"""The guidance that a command asks for, put around the model."""

from typing import Literal

import torch

from diffcli import checkpoint
from diffcli.commands.build import build, check, check_type, locate
from diffcli.commands.model import Model, check_shape, other_model
from diffcli.commands.run_folder import say
from diffcli.data.transform import Transform
from diffcli.diffusion.classifier import Classifier
from diffcli.diffusion.guidance import Autoguided, ClassifierFree, ClassifierGuided, ExactClassifier
from diffcli.errors import UsageError

LOADED = ("ckpt", "weights", "model")  # keys of a node that the command itself reads
TOLD = ("label", "vector", "image")


def guide(model: Model, device: torch.device) -> None:
    """Wrap `model.denoiser` as the settings `guidance` say, and print what it is.  Raises UsageError for what does not go with
    the model, or with what it is told."""
    node = model.config.get("guidance")
    if not node:
        return
    kind = locate(node.get("_target_", ""), "guidance")
    known = {k: v for k, v in node.items() if k not in LOADED}
    if kind in (ClassifierFree, Autoguided, ClassifierGuided):
        check(known, "guidance", given=("inner", "other", "classifier"))
        check_type(node.get("ckpt"), str | None, "guidance.ckpt")
    parts, model.guidance = {
        ClassifierFree: _classifier_free,
        Autoguided: _autoguided,
        ClassifierGuided: _classifier_guided,
    }.get(kind, _other)(model, node)
    like = next((a for a in model.denoiser.parameters()), None)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(device).to(like.dtype if like is not None else getattr(torch, model.config["dtype"]))
            part.eval().requires_grad_(False)
    model.denoiser = build(known, "guidance", inner=model.denoiser, **parts).to(device)
    if model.guidance:
        say(f"guidance: {model.guidance}")


def _other(model: Model, node: dict) -> tuple[dict, str]:
    return ({} if model.problem is None else model.problem.parts), ""


def _classifier_free(model: Model, node: dict) -> tuple[dict, str]:
    if model.condition == "none":
        raise UsageError(
            f"guidance=cfg: {model.source} was trained without conditions and has no s(y)",
            "diffcli train condition=label, or guidance=classifier guidance.ckpt=PATH",
        )
    if not model.drop:
        raise UsageError(
            f"guidance=cfg: {model.always_told} and has no s(∅)",
            f"diffcli train condition={model.condition} drop=0.1, or guidance=autoguidance guidance.ckpt=PATH",
        )
    _check_told(model, "cfg")
    scale = _scale(node)
    text = f"s(y) {_signed(scale)} (s(y) - s(∅)); as s(∅) + w (s(y) - s(∅)): w = {1 + scale:g}"
    return {}, text + _where(node) + _rescaled(node)


def _autoguided(model: Model, node: dict) -> tuple[dict, str]:
    if node.get("ckpt") is None:
        raise UsageError(
            "guidance=autoguidance needs a second, worse model",
            "guidance.ckpt=PATH of a smaller model of the same data, or of an earlier step",
        )
    path = node["ckpt"]
    other = other_model(path, model.config, _weights(node))
    check_shape(model, other.shape, f"guidance.ckpt={path}")
    _check_space(model, other.data.transform, path)
    asked = [name for name in TOLD if name in _tables(model)]
    told = other.condition in asked
    if told and other.class_names != model.class_names:
        raise UsageError(
            f"guidance.ckpt={path} knows the labels {_some(other.class_names)}, the model {_some(model.class_names)}",
            "two models of the same data",
        )
    if not told and other.condition != "none" and not other.drop:
        raise UsageError(
            f"guidance.ckpt={other.always_told}, and here there is none",
            f"{other.condition}=VALUE, or another guidance.ckpt",
        )
    scale = _scale(node)
    what = "the same conditions" if told else "no condition" if asked else ""
    text = f"x0_hat {_signed(scale)} (x0_hat - x0_other), the other {path}" + (f", told {what}" if what else "")
    text += f"; as x0_other + w (x0_hat - x0_other): w = {1 + scale:g}"
    return {"other": other.denoiser, "told": told}, text + _where(node) + _rescaled(node)


def _classifier_guided(model: Model, node: dict) -> tuple[dict, str]:
    classifier = _classifier(model, node)
    takes, path = model.condition == "label", node.get("ckpt")
    who = f"the classifier {path}" if path else "the exact posterior"
    kind = node.get("model", "auto")
    check_type(kind, Literal["auto", "conditional", "unconditional"], "guidance.model")
    if kind == "conditional" and not takes:
        raise UsageError(
            f"guidance.model=conditional: {model.source} takes no label", "guidance.model=unconditional, or auto"
        )
    if kind == "unconditional" and takes and not model.drop:
        raise UsageError(
            f"guidance.model=unconditional: {model.always_told} and has no s(∅)",
            "guidance.model=conditional",
        )
    kind = "conditional" if takes and kind != "unconditional" else "unconditional"
    check_shape(model, classifier.shape, who)
    if path:
        _check_space(model, classifier.transform, path)
    names = label_names(model)
    if set(names) != set(classifier.class_names):
        raise UsageError(
            f"{who} tells apart {_some(classifier.class_names)}, {model.source} knows {_some(names)}",
            "a classifier of the same data",
        )
    _check_told(model, "classifier", only=("label",))
    scale = _scale(node)
    if kind == "conditional":
        text = f"s(x,t|y) {_signed(scale)} grad log c(y|x,t), c {who}; with exact parts"
        text += f" cfg with scale = {scale:g}, or this on s(x,t) with scale = {1 + scale:g}"
    else:
        text = f"s(x,t) {_signed(scale)} grad log c(y|x,t), c {who}; with exact parts cfg with scale = {scale - 1:g}"
    return {"classifier": classifier, "names": names, "model": kind}, text + _where(node)


def label_names(model: Model) -> list[str]:
    """What `label=` may name: the labels that the model was told in training, else those of the classifier that guides it."""
    if model.condition == "label":
        return model.class_names
    node = model.config.get("guidance") or {}
    if not node or locate(node.get("_target_", ""), "guidance") is not ClassifierGuided:
        return []
    return _classifier(model, node).class_names


def _classifier(model: Model, node: dict) -> Classifier | ExactClassifier:
    """The classifier of the settings, by default the exact posterior of a mixture's components."""
    path = node.get("ckpt")
    if path is None:
        mixture = getattr(model.denoiser, "mixture", None) or getattr(model.data, "mixture", None)
        if mixture is None:
            raise UsageError(
                "guidance=classifier needs a classifier of noised items",
                "diffcli train task=classifier sde=vp, then guidance.ckpt=PATH",
            )
        names = model.class_names or model.data.class_names
        return ExactClassifier(model.denoiser.sde, mixture, names)
    classifier = checkpoint.load_classifier(path, _weights(node), model.config["trust"])
    if classifier.sde is None:
        raise UsageError(
            f"guidance.ckpt={path} is a classifier of clean items, and guidance asks it at every noise level",
            "diffcli train task=classifier sde=vp",
        )
    return classifier


def _tables(model: Model) -> dict:
    return {} if model.given is None else model.given.tables


def _check_told(model: Model, name: str, only: tuple[str, ...] = TOLD) -> None:
    """Raise UsageError where the samples are given nothing to guide them to."""
    there = [table for key, (table, _) in _tables(model).items() if key in only]
    if any(bool((table >= 0).any()) if not table.is_floating_point() else True for table in there):
        return
    first = label_names(model)[:1] or ["0"]
    wanted = "vector=[…]" if model.condition == "vector" and "vector" in only else f"label={first[0]}, or label=all"
    raise UsageError(f"guidance={name} guides to a condition, and none is given", wanted)


def _check_space(model: Model, transform: Transform, path) -> None:
    """Raise UsageError where a second model reads items on another scale."""
    own = model.data.transform
    if (type(own), own.levels) != (type(transform), transform.levels):
        kinds = ["continuous items" if k is None else f"items of {k} levels" for k in (transform.levels, own.levels)]
        raise UsageError(f"guidance.ckpt={path} was trained on {kinds[0]}, the model on {kinds[1]}", "the same data")


def _weights(node: dict) -> str:
    check_type(node.get("weights", "ema"), Literal["ema", "raw"], "guidance.weights")
    return node.get("weights", "ema")


def _scale(node: dict) -> float:
    return node.get("scale", 1.0)


def _signed(scale: float) -> str:
    return f"{'-' if scale < 0 else '+'} {abs(scale):g}"


def _where(node: dict) -> str:
    low, high = (
        ends if len(ends := node.get("interval", (0.0, 1.0))) == 2 else (0, 1)
    )  # others are refused by its class
    return "" if (low, high) == (0, 1) else f"; for t in [{low:g}, {high:g}]"


def _rescaled(node: dict) -> str:
    return f"; rescale {node['rescale']:g}" if node.get("rescale") else ""


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:6])) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
