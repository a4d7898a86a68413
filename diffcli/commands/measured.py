"""What a task measures: the user's own items, the data's, or measurements that are there already."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from diffcli.commands.model import Model, check_shape
from diffcli.commands.run_folder import say
from diffcli.data.inputs import files, picture_size, read_inputs
from diffcli.data.pictures import is_image
from diffcli.diffusion.inverse import Custom, Operator
from diffcli.errors import UsageError


@dataclass
class Inputs:
    """Items x (N, *S), or their measurements y (N, *M), in model space; `source` says where they are from."""

    x: Tensor | None
    y: Tensor | None
    source: str


def read(model: Model, operator: Operator, node: dict) -> Inputs:
    """The inputs of a task.  Raises UsageError for files that are not there or do not fit."""
    paths, transform = model.config["input"], model.data.transform
    if paths is None:
        if node["measured"]:
            raise UsageError("task.measured=true says that input= is the measurement, and there is none", "input=FILE")
        items = model.data.split("test")
        count = min(model.config["inputs"], len(items))
        x = items.__getitems__(range(count))[0]
        check_shape(model, x.shape[1:], "the data set")
        return Inputs(transform.encode(x).double(), None, "the first test items")
    source = ", ".join(map(str, paths)) if isinstance(paths, list) else str(paths)
    if node["measured"] or _are_measured(files(paths), model, operator):
        y = read_inputs(paths, operator.measured, transform.levels)
        return Inputs(None, y.double() if isinstance(operator, Custom) else transform.encode(y).double(), source)
    return Inputs(transform.encode(read_inputs(paths, model.shape, transform.levels)).double(), None, source)


def _are_measured(found: list[Path], model: Model, operator: Operator) -> bool:
    """Whether these files hold measurements by their shape: of that of a measurement, and not of that of an item."""
    if operator.measured == model.shape:
        return False
    each = [_is_measured(path, model.shape, operator.measured) for path in found]
    if any(each) and not all(each):
        one, other = found[each.index(True)], found[each.index(False)]
        raise UsageError(
            f"{one} has the shape of a measurement, and {other} has not", "one kind at a time, or task.measured=true"
        )
    if all(each):
        say(f"note: {found[0].name} has the shape {operator.measured} of a measurement, and is taken for one")
    return all(each)


def _is_measured(path: Path, shape: tuple[int, ...], measured: tuple[int, ...]) -> bool:
    if path.suffix.lower() == ".npy":
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError):
            return False  # what is wrong with it is said where it is read
        return found == measured or found[1:] == measured
    if not is_image(shape) or not is_image(measured):
        return False
    channels, *size = picture_size(path)
    if measured[1:] == shape[1:]:
        return channels == 1 == measured[0] < shape[0]
    return tuple(size) == measured[1:]
