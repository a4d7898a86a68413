"""From a config node to an object: names and types are checked against the constructor first."""

import importlib
import inspect
import math
import types
import typing

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from diffcli.advice import nearest
from diffcli.errors import DiffcliError, UsageError


def build(node: dict, where: str, **given):
    """The object that a plain config node describes, with the nodes inside it; `given` are built arguments beside the node's.

    Raises UsageError that names the setting, what is wrong with it and what would fit.
    """
    check(node, where, tuple(given))
    try:
        if given:  # objects never enter a config, which would copy them
            return _called(instantiate(node | {"_partial_": True}, _convert_="all"), given, where)
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, DiffcliError):
            raise cause from error
        inner = str(error).partition("full_key: ")[2].strip()
        key = inner.rsplit(".", 1)[-1] or where  # one word per concept: the node's name is its group's
        raise UsageError(f"{key}: {str(cause or error).splitlines()[0]}") from error


def _called(make, given: dict, where: str):
    try:
        return make(**given)
    except ValueError as error:
        raise UsageError(f"{where}: {str(error).splitlines()[0]}") from error


def check(node: dict, where: str, given: tuple[str, ...] = ()) -> None:
    """Check a node, and those inside it, against the signatures of their classes, of which `given` come from elsewhere.

    Raises UsageError.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UsageError(f"{where} names no class: its yaml needs a _target_")
    target = locate(node["_target_"], where)
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not open_ended:
            raise UsageError(f"{where} has no setting {name!r}{nearest(name, parameters)}")
        if isinstance(value, dict) and "_target_" in value:
            check(value, where if name == "inner" else name)
        elif name in hints and not target.__module__.startswith("lightning"):
            check_type(value, hints[name], f"{where}.{name}")
    for name, p in parameters.items():
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in (*node, *given):
            raise UsageError(f"{where} lacks the setting {name!r} of {node['_target_']}")


def locate(path: str, where: str):
    """What a `_target_` names.  Raises UsageError where it cannot be imported."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{where}: cannot import {path!r} ({error})", "is its package installed, or on PYTHONPATH?"
        ) from None


def check_type(value, hint, where: str) -> None:
    """Raise UsageError unless a plain value fits the annotation (int, float, str, bool, Literal, list, None)."""
    if not fits(value, hint):
        options = [str(a) for h in _members(hint) if typing.get_origin(h) is typing.Literal for a in typing.get_args(h)]
        if options:
            # nearer than a name need be: the few options are all shown, and gpu is not a cpu
            raise UsageError(
                f"{where} cannot be {value!r}{nearest(value, options, 0.7)}", f"{where}=" + "|".join(options)
            )
        raise UsageError(f"{where} must be {describe(hint)}, got {value!r}")


def _members(hint) -> tuple:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def fits(value, hint) -> bool:
    """Whether a plain value is of an annotated type; a type that is not plain takes anything."""
    if len(_members(hint)) > 1:
        return any(fits(value, h) for h in _members(hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(fits(v, arguments[0]) for v in value)
    return not isinstance(value, (str, int, float, bool, list)) if hint not in (typing.Any, inspect._empty) else True


def describe(hint) -> str:
    """An annotation in words."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if len(_members(hint)) > 1:
        return " or ".join(dict.fromkeys(describe(h) for h in _members(hint)))
    if typing.get_origin(hint) in (list, tuple):
        return f"a list ({describe(typing.get_args(hint)[0])} each)"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
