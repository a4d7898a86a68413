"""Where samples start, of a model between two data sets: `input=` of the user's own, else its source's test items."""

from pathlib import Path

from diffcli.commands.common import typed
from diffcli.commands.files import write_samples
from diffcli.commands.model import Model
from diffcli.commands.partial import CHUNK, Rows, save_chunks
from diffcli.data.base import TensorItems
from diffcli.data.inputs import read_named
from diffcli.data.pair_picture import names_of
from diffcli.data.pictures import is_image
from diffcli.data.translation_picture import translations
from diffcli.errors import UsageError
from diffcli.writing import whole

SHOWN = 100, 400  # pictures, points in the picture of both sides


def take_inputs(model: Model) -> list[str] | None:
    """Let the samples start from what `input=` names, n by default all of it; their names, None where they start elsewhere.

    Raises UsageError for files that are not there or do not fit, for a start given twice, and for an input that nothing takes.
    """
    config = model.config
    wish, elsewhere = config.get("input"), model.condition == "image" or bool(config.get("task"))
    if wish is not None and model.side is None and not elsewhere:
        raise UsageError(
            f"input={wish}: {model.source} starts from noise and takes no input",
            "task=inpaint|superres|…, or a model trained with source=DATA or task=paired",
        )
    if model.side is None:
        return None
    if (config.get("each") or 1) > 1 and model.condition != "image":
        raise UsageError(f"each={config['each']}: an ODE leads each item to one place", "each= left out")
    if wish is None or elsewhere:
        _ = model.starts  # a missing file is found before anything is made
        return None
    if config.get("start") is not None:
        raise UsageError("input= and start= both say where samples start", "one of the two")
    x, names = read_named(wish, model.shape, model.side.transform.levels)
    model.inputs = TensorItems(x)
    if not typed("n="):
        config["n"] = len(x)
    return names_of([names[i % len(names)] for i in range(config["n"])])


def write_translations(path: Path, x: Rows, model: Model, png: bool, names: list[str] | None) -> list[Path]:
    """source.npy and samples.npy, grid.png of both sides, and a picture of each sample by its input's name."""
    starts, n = model.starts, len(x)
    with whole(path / "source.npy") as file:
        save_chunks(file, n, (starts.raw(range(i, min(i + CHUNK, n))).numpy() for i in range(0, n, CHUNK)))
    files = write_samples(path, x, model, png, names)
    most = SHOWN[not is_image(model.shape)]
    translations(starts.raw(range(min(most, n))).numpy(), x[:most], path / "grid.png", model.side, model.data)
    return [path / "grid.png", path / "source.npy", *files]
