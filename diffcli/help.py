"""What `--help` prints: the commands, and for each its groups, their options and its settings; without torch."""

from pathlib import Path

ABOUT = {
    "train": "train a score network, or a classifier",
    "sample": "draw samples from a trained model",
    "interpolate": "between two items, through their latents or through their noise, as a strip and a film",
    "encode": "data to standard normal latents, with the error of the round trip; to=OTHER: translate to another model",
    "decode": "latents of encode back to data, by the same model or by another",
    "nll": "log-likelihood and bits/dim of data under a model (also: likelihood)",
    "evaluate": "compare samples with held-out data",
    "diagnose": "where a model fails: checks with plots on one page; self_check=true: this program's own laws",
    "compare": "samplers side by side on one model: which is best at how many network evaluations",
    "tune": "fit the times and weights of few steps to one model, for sampler=tuned and grid=tuned",
    "report": "the runs of a sweep, or of any folder, side by side as a table and a picture, best first",
    "samplers": "the table of all samplers: kind, order, evaluations a step",
    "import": "make a checkpoint of a diffusers model, or of what export wrote",
    "export": "write a checkpoint as safetensors and JSON, and for diffusers",
    "explain": "a process, its data and its scores in figures, and the clocks of other programs",
}


OF = {"source": "data"}  # a group whose options are those of another


def usage() -> str:
    """`diffcli --help`."""
    rows = "\n".join(f"  {name:<11} {about}" for name, about in ABOUT.items())
    return f"""usage: diffcli COMMAND [key=value ...]

{rows}

  diffcli COMMAND --help                 its groups, their options, its settings
  diffcli train                          trains on scikit-learn's digits; then: diffcli sample
  diffcli train -m sde=vp,ve seed=0,1    a sweep: every combination
  diffcli --version
  eval "$(diffcli -sc install=bash)"     tab completion"""


def first_comment(path: Path) -> str:
    """The first comment of a yaml file that is no directive: its one-line description."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            return ""
        if not line[1:].strip().startswith("@"):
            return line[1:].strip()
    return ""


def commands_of(path: Path) -> list[str]:
    """The commands that an option is of alone, where its yaml begins with `# @command NAME ...`; else all that have its group."""
    for line in path.read_text().splitlines():
        if line.startswith("# @command "):
            return line.split()[2:]
        if not line.startswith("#"):
            break
    return list(ABOUT)


def folders(config_dir: str | None = None) -> list[Path]:
    """Where configs are looked for: the user's own folder first."""
    from diffcli.paths import conf_dir

    return ([Path(config_dir)] if config_dir else []) + [conf_dir()]


def groups(command: str, config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """The config groups of a command, each option with its description."""
    import yaml

    defaults = yaml.safe_load((folders()[-1] / f"{command}.yaml").read_text())["defaults"]
    names = [name.rpartition("@")[2] for item in defaults if isinstance(item, dict) for name in item]
    return {
        name: {
            f.stem: first_comment(f)
            for d in reversed(folders(config_dir))
            for f in sorted((d / OF.get(name, name)).glob("*.yaml"))
            if command in commands_of(f)
        }
        for name in names
    }


def command_help(command: str, config_dir: str | None = None) -> str:
    """`diffcli COMMAND --help`."""
    import yaml

    lines = [
        f"usage: diffcli {command} [key=value ...]",
        "",
        ABOUT[command],
    ]
    primary = folders()[-1] / f"{command}.yaml"
    chosen = {
        k.rpartition("@")[2]: v
        for item in yaml.safe_load(primary.read_text())["defaults"]
        if isinstance(item, dict)
        for k, v in item.items()
    }
    known = groups(command, config_dir)
    lines += ["", "groups (group=option; group.key=value):"] if known else []
    for name, options in known.items():
        default = chosen[name] if chosen[name] is not None else "none" if name == "task" else "the checkpoint's"
        if name in OF:
            lines.append(f"  {name}  (default: none)  any of {OF[name]}, where samples start in the place of noise")
            continue
        lines.append(f"  {name}  (default: {default})")
        lines += [f"    {option:<16} {about}".rstrip() for option, about in options.items()]
    lines += ["", "settings (key=value) and their defaults:"]
    own, common = (
        _settings(path.read_text().split("\ndefaults:")[1]) for path in (primary, primary.with_name("common.yaml"))
    )
    keys = {line.partition(":")[0] for line in own}  # a command's own default stands for the common one
    lines += [f"  {line}" for line in [*own, *(line for line in common if line.partition(":")[0] not in keys)]]
    lines += ["", *(["a group's own keys: diffcli " + command + " --cfg job"] if known else [])]
    lines += [
        "-m sweeps over a=1,2 b=x,y; --config-dir DIR adds your own configs",
    ]
    return "\n".join(lines)


def _settings(body: str) -> list[str]:
    """The lines of a primary config behind its defaults list, without Hydra's own and the assembled nodes."""
    lines = [line for line in body.splitlines()[1:] if line.strip() and not line.startswith(("  - ", "denoiser:"))]
    return lines[: lines.index("hydra:")] if "hydra:" in lines else lines
