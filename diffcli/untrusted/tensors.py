"""Tensors and plain values that came in a file: dense, finite, and nothing that only looks like one."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from diffcli.errors import CheckpointError

LEAVES = (str, int, float, bool, type(None))
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}
NUMBERS |= {torch.int8, torch.int16, torch.int32, torch.int64}
ROOM = 2  # a module may put a weight into the place of another one while it is made
CONTAINERS = (dict, list, tuple)  # an OrderedDict is a dict; each is met once, however often it is referred to


def check_content(content, where: str, path) -> None:
    """Refuse anything but plain containers of numbers, text and tensors, each tensor dense and finite.

    where: what the content is called.  Raises CheckpointError with one sentence.
    """
    todo, seen = [(where, content)], set()
    while todo:
        place, value = todo.pop()
        if isinstance(value, Tensor):
            check_tensor(value, place, path)
        elif isinstance(value, CONTAINERS):
            if id(value) in seen:
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{place}.{_word(key, place, path)}", item) for key, item in items]
        elif type(value) not in LEAVES:
            raise CheckpointError(f"{path} is refused: its {place} is a {type(value).__name__}, not plain data")


def check_named(tensors, where: str, path) -> None:
    """Refuse anything but tensors by their names, each dense and finite.  Raises CheckpointError with one sentence."""
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} has no weights in its {where}")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is refused: {name!r} in its {where} is no dense tensor")
        check_tensor(value, f"{where}.{_word(name, where, path)}", path)


def check_tensor(value: Tensor, place: str, path) -> None:
    """Refuse a tensor that is not dense or not finite.  Raises CheckpointError with one sentence."""
    if not is_dense(value):
        raise CheckpointError(f"{path} is refused: {place} is no dense tensor")
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{path}: {place} is not finite")


def is_dense(value: Tensor) -> bool:
    """A tensor of NUMBERS whose elements are all there: not sparse or without storage, none stored once for many."""
    if type(value) is not Tensor or value.layout is not torch.strided or value.dtype not in NUMBERS:
        return False
    return value.device.type == "cpu" and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


@contextlib.contextmanager
def no_larger(weights: dict[str, Tensor]) -> Iterator[None]:
    """While entered, modules may be given as many parameters as `weights` hold, before any of them is filled, ROOM times over.

    Raises CheckpointError from within the module that has more: a config can ask for a network that no memory holds.
    """
    left = ROOM * sum(value.numel() for value in weights.values())

    def count(module, name, parameter) -> None:
        nonlocal left
        left -= parameter.numel()
        if left < 0:
            raise CheckpointError("it has more weights than the file")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _word(key, where: str, path) -> str:
    """A key as a sentence may show it."""
    if type(key) not in (str, int) or not str(key).isprintable():
        raise CheckpointError(f"{path} is refused: its {where} has the key {key!r}"[:200])
    return str(key)
