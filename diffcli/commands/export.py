"""`diffcli export`: a checkpoint as safetensors and JSON, and as a diffusers folder where the network is one of theirs."""

from pathlib import Path

from diffcli import checkpoint
from diffcli.commands.common import plain, recorded
from diffcli.commands.model import parameters
from diffcli.commands.run_folder import choose, create, say
from diffcli.commands.settings import check_settings
from diffcli.errors import UsageError
from diffcli.interchange import MODEL_FILES, diffusers_folder, own


def run(cfg) -> int:
    config = plain(cfg)
    check_settings(config, set())
    source = Path(cfg.ckpt).expanduser() if cfg.ckpt is not None else checkpoint.newest()
    if cfg.ckpt is None:
        say(f"model: {source} (the newest training run)")
    content = checkpoint.read(source)
    denoiser = checkpoint.build_denoiser(content["config"]["denoiser"], cfg.trust, content["state_dict"])
    checkpoint.load_weights(denoiser, content, cfg.weights, source)
    path = choose("export", config | {"ckpt": str(source)})
    taken = [] if (path / "run.json").exists() else [name for name in MODEL_FILES if (path / name).exists()]
    if taken:
        raise UsageError(f"out={path} has a {taken[0]} that is not of an export", "another out=DIR")
    if config["dry_run"]:
        say(f"would export {parameters(denoiser):,} parameters from {source} to {path}")
        return 0
    folder = create(path, "export", config | {"ckpt": str(source)})
    with recorded(folder):
        parts = {part: content["config"][part] for part in ("denoiser", "data")}
        parts |= {key: content["config"].get(key) for key in ("condition", "class_names", "drop", "source")}
        files = own.write(path, denoiser, parts, content["shape"], cfg.weights, content.get("tuned", []))
        try:
            files += diffusers_folder.write(path, denoiser)
            reason = None
        except ValueError as error:
            reason = str(error)
        results = {"parameters": parameters(denoiser), "files": [file.name for file in files], "no_diffusers": reason}
        folder.write("finished", results=results)
    say(f"{parameters(denoiser):,} parameters, weights={cfg.weights}, from {source}")
    for file in files:
        say(f"  {file}")
    say("diffusers loads this folder" if reason is None else f"not for diffusers: {reason}")
    return 0
