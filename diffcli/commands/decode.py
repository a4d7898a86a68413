"""`diffcli decode`: items from latents, which `diffcli encode` made with this model or with another."""

import json
import time
from pathlib import Path

import numpy as np

from diffcli.commands.common import pick_device, recorded
from diffcli.commands.files import write_samples
from diffcli.commands.latents import decode_all, plan_encoding, prepare
from diffcli.commands.model import Model, read_states
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.walk import nfe_summary, nfe_text
from diffcli.data.pictures import picture
from diffcli.data.rows import rows_picture
from diffcli.errors import UsageError

SHOWN = 400  # items in a grid, the rest are in samples.npy


def run(cfg) -> int:
    device = pick_device(cfg.device)
    model = prepare(cfg, device)
    encoding = plan_encoding(model, cfg.last)
    file = latents_file(model.config["input"])
    model.config["input"] = str(file)
    z = read_states(file, model, "input")[: cfg.n]
    path = choose("decode", model.config)
    if file.resolve().parent == path.resolve():
        raise UsageError(f"out={path} is the run that the latents belong to", "another out=DIR")
    if cfg.dry_run:
        say(f"would decode {len(z)} latents of {file} in {len(encoding.times) - 1} steps with {model.source}")
        return 0
    folder = create(path, "decode", model.config)
    with recorded(folder):
        begun = time.monotonic()
        x, nfe = decode_all(encoding, model, z, device)
        files = _write(path, x, file, model, cfg.png)
        steps = None if encoding.sampler.evaluations is None else len(encoding.times) - 1
        results = {"n": len(x), "last": encoding.last, "seconds": round(time.monotonic() - begun, 3)}
        folder.write("finished", steps=steps, nfe=nfe_summary(nfe.numpy()), results=results)
    say(f"{len(x)} latents of {file} decoded, {nfe_text(nfe.numpy())} network evaluations each, with {model.source}")
    for name in files:
        say(f"  {name}")
    return 0


def latents_file(wish: str | list[str] | None) -> Path:
    """The .npy that input= names, itself or by the folder of its run; none: of the newest encode run.  Raises UsageError."""
    if isinstance(wish, list):
        raise UsageError("decode takes the latents of one file", "input=latents.npy")
    if wish is None:
        found = sorted(Path("outputs").glob("**/latents.npy"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise UsageError("no encode run under outputs/, and no input given", "diffcli encode, or input=latents.npy")
        say(f"latents: {found[-1]} (the newest encode run)")
        return found[-1]
    path = Path(wish).expanduser()
    if path.is_dir():
        if not (path / "latents.npy").is_file():
            raise UsageError(f"input={wish} holds no latents.npy", "the folder of an encode run, or FILE.npy")
        return path / "latents.npy"
    if path.suffix.lower() != ".npy" and path.is_file():
        raise UsageError(
            f"input={wish} is no .npy of latents",
            f"diffcli encode input={wish}, then decode; or encode … to=OTHER.ckpt",
        )
    return path


def _write(path: Path, x: np.ndarray, file: Path, model: Model, png: bool) -> list[Path]:
    files = write_samples(path, x, model, png)
    picture(x[:SHOWN], path / "grid.png", model.data)
    files.insert(0, path / "grid.png")
    before = _inputs(file, len(x))
    if before is not None:
        rows_picture({"in": before, "out": (x, model.data.transform.levels)}, path / "translation.png")
        files.insert(0, path / "translation.png")
    return files


def _inputs(file: Path, n: int) -> tuple[np.ndarray, int | None] | None:
    """What the latents were encoded from and its levels, where the run that did so lies beside them."""
    try:
        record = json.loads((file.parent / "run.json").read_text())
        x = np.load(file.parent / "inputs.npy", allow_pickle=False)
        return (x[:n], record["results"]["levels"]) if len(x) >= n and file.name == "latents.npy" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
