"""A config that came with a file: it may name classes of diffcli, and nothing else is looked up, imported or called for it."""

import contextlib
import importlib
import inspect
from collections.abc import Iterator

from hydra.utils import instantiate

from diffcli.errors import CheckpointError
from diffcli.untrusted.tensors import no_larger

PARTS = ("diffcli.data.", "diffcli.diffusion.", "diffcli.networks.")  # the modules that such a config may name
DEPTH, SIZE = 20, 100_000  # of such a config; a forged one can contain itself


def check_plain(node, where: str) -> None:
    """Refuse what is no plain data or refers to something outside itself.  Raises CheckpointError with one sentence."""
    for path, value in _walk(node, where):
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"the checkpoint is refused: {path} holds an interpolation")
        if value is not None and type(value) not in (dict, list, str, int, float, bool):
            raise CheckpointError(f"the checkpoint is refused: {path} is a {type(value).__name__}, not plain data")
        if isinstance(value, dict):
            odd = [k for k in value if type(k) not in (str, int, float, bool) or not str(k).isprintable()]
            if odd:
                raise CheckpointError(f"the checkpoint is refused: {path} has the key {odd[0]!r}")


def check_node(node, bases: tuple[type, ...], trust: str | None, where: str) -> None:
    """Refuse a config that could do more than build a model: it names classes of diffcli (or of `trust`), nothing else.

    A class counts as diffcli's by the module that defines it, so that nothing re-exported gets through; it must also be
    one of `bases`.  Of `trust`, functions will do.  Raises CheckpointError with one sentence.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise CheckpointError(f"the checkpoint is refused: its {where} names no class")
    check_plain(node, where)
    for path, value in _walk(node, where):
        if isinstance(value, dict):
            odd = [k for k in value if not isinstance(k, str) or (k[:1] == "_" and k != "_target_")]
            if odd:
                raise CheckpointError(f"the checkpoint is refused: {path} has the key {odd[0]!r}")
            if "_target_" in value:
                _check_target(value["_target_"], bases, trust, path)


def _walk(node, where: str) -> Iterator[tuple[str, object]]:
    todo, seen = [(where, node, 0)], 0
    while todo:
        path, value, depth = todo.pop()
        seen += 1
        if depth > DEPTH or seen > SIZE:
            raise CheckpointError(f"the checkpoint is refused: its {where} is too large or nested too deeply")
        yield path, value
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        todo += [(f"{path}.{key}", item, depth + 1) for key, item in items]


def _check_target(target, bases: tuple[type, ...], trust: str | None, path: str) -> None:
    if not isinstance(target, str) or not all(word.isidentifier() for word in target.split(".")):
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is no name of a class")
    package = target.partition(".")[0]
    if package not in ("diffcli", trust):
        raise CheckpointError(
            f"the checkpoint is refused: {path} is {target!r}, which is not part of diffcli",
            f"if you trust that package, trust={package}",
        )
    foreign = package != "diffcli"
    if not foreign and not target.startswith(PARTS):
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is not a model part of diffcli")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint names {target!r} ({path}), which cannot be imported ({error})") from None
    home = str(getattr(found, "__module__", "")).partition(".")[0]  # where it is defined, not where it was found
    if home != package or not (foreign or (inspect.isclass(found) and issubclass(found, bases))):
        kind = f"defined in {package}" if foreign else "a model part of diffcli"
        raise CheckpointError(f"the checkpoint is refused: {path} is {target!r}, which is not {kind}")


def built(node: dict, bases: tuple[type, ...], trust: str | None, where: str, what: str, weights: dict | None = None):
    """The object that a node describes, once `check_node` has let it through, and of no more weights than the file has.

    weights: those that the file has; None where the object is given none.  Raises CheckpointError with one sentence.
    """
    check_node(node, bases, trust, where)
    try:
        with no_larger(weights) if weights is not None else contextlib.nullcontext():
            return instantiate(node, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        reason = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
        raise CheckpointError(f"the checkpoint's {what} cannot be built: {reason}") from error
