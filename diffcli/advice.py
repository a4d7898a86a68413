"""From Hydra's complaints to a sentence that names the nearest right word."""

import difflib
import re

from diffcli.errors import UsageError
from diffcli.help import ABOUT, OF, commands_of, folders, groups

EXTRAS = {  # Hydra's own options that come with an extra of diffcli's
    "hydra/launcher/joblib": "sweep",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/sweeper/optuna": "optuna",
}


def nearest(word: str, known, cutoff: float = 0.5) -> str:
    """`, did you mean 'x'?` for the closest of the known words, whatever their case, or nothing."""
    names = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=cutoff)
    return f", did you mean {names[close[0]]!r}?" if close else ""


def known_keys(command: str, config_dir: str | None = None) -> dict[str, list[str]]:
    """Every key that can be set, the command's own, its groups and their keys, each with the options that have it."""
    import yaml

    found: dict[str, list[str]] = {}
    for name in ("common", command):
        found |= {key: [] for key in _flat(yaml.safe_load((folders()[-1] / f"{name}.yaml").read_text()))}
    for group, options in groups(command, config_dir).items():
        found[group] = []
        for path in (
            folder / OF.get(group, group) / f"{option}.yaml" for folder in folders(config_dir) for option in options
        ):
            if path.is_file() and group not in ("sweep", "experiment"):
                node = yaml.safe_load(path.read_text()) or {}
                for key in _flat(node.get(group, node) if "@package" in path.read_text() else node, f"{group}."):
                    found.setdefault(key, []).append(f"{group}={path.stem}")
    return found


def _flat(node, prefix: str = ""):
    for key, value in node.items() if isinstance(node, dict) else ():
        if key not in ("defaults", "hydra", "denoiser", "_target_"):
            yield prefix + key
            yield from _flat(value, f"{prefix}{key}.")


def check_options(command: str, settings: list[str], config_dir: str | None = None) -> None:
    """Raise UsageError for an option of a group that is there for other commands alone, as task=inpaint is for sample."""
    known = groups(command, config_dir)
    for group, _, value in (word.lstrip("+").partition("=") for word in settings):
        for name in value.split(",") if group in known and value else ():
            files = [f for f in (d / group / f"{name}.yaml" for d in folders(config_dir)) if f.is_file()]
            if files and name not in known[group]:
                right = commands_of(files[0])
                raise UsageError(
                    f"{group}={name} is of {' and '.join(right)}, not of {command}",
                    f"diffcli {right[0]} {group}={name}",
                )


def explain(command: str, error: Exception, settings: list[str], config_dir: str | None = None) -> UsageError:
    """The UsageError that says what one of Hydra's composition errors means; `settings` are the words typed."""
    text, help_ = str(error), f"diffcli {command} --help"
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        return unknown_key(command, match.group(1).split("@")[0], settings, config_dir)
    if match := re.search(r"Could not find '([^']+)'", text):
        path = match.group(1)
        side = next((g for g, of in OF.items() if path == f"{of}/{_typed(g, settings)}"), None)
        return unknown_option(command, f"{side}/{_typed(side, settings)}" if side else path, text, config_dir)
    if "Config group override must be" in text:
        return _odd_option(command, settings, config_dir)
    if (word := getattr(error, "override", None)) is not None:
        return _unreadable(command, word, config_dir)
    if match := re.search(r"Multiple values for (\S+)\.|Ambiguous value for argument '([^']+)'", text):
        word = next(g for g in match.groups() if g)
        return UsageError(f"{word.split('=')[0]} has several values", f"diffcli {command} -m {word} sweeps over them")
    if match := re.search(r"Interpolation key '([^']+)' not found\s+full_key: (\S+)", text):
        return UsageError(f"{match.group(2)} refers to {match.group(1)!r}, which is not there", help_)
    # the rest in Hydra's words, without where it looked and what it looked like inside
    return UsageError(" ".join(re.split(r"Config search path|\n\s*full_key|\nSee http", text)[0].split()), help_)


def _typed(key: str, settings: list[str]) -> str | None:
    """The value of a setting as it was typed."""
    return next((s.partition("=")[2] for s in settings if s.startswith(f"{key}=")), None)


def unknown_key(command: str, key: str, settings: list[str], config_dir: str | None = None) -> UsageError:
    """What to say of a key that the composed config does not have."""
    known, help_ = known_keys(command, config_dir), f"diffcli {command} --help"
    if options := known.get(key):
        return UsageError(f"{key} is a setting of {' or '.join(options)}, not chosen here", " or ".join(options[:4]))
    refused = f"{command} has no setting {key!r}"
    value = next((s.partition("=")[2] for s in settings if s.lstrip("+~").startswith(f"{key}=")), "")
    holders = [group for group, options in groups(command, config_dir).items() if value in options]
    if advice := nearest(key, holders, 0.6):  # sed=vp is sde=vp, though seed is as near
        return UsageError(refused + advice, help_)
    group, _, leaf = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == group]
    if group and siblings:
        close = nearest(key, [k for k in siblings if nearest(leaf, [k.rpartition(".")[2]])])
        return UsageError(refused + close, help_ if close else "one of " + ", ".join(siblings))
    if advice := nearest(key, known, 0.7):
        return UsageError(refused + advice, help_)
    if others := [name for name in ABOUT if name != command and key in known_keys(name, config_dir)]:
        return UsageError(f"{refused}; it is one of {', '.join(others)}", help_)
    same = [k for k in known if k.rpartition(".")[2] == leaf]
    return UsageError(refused + (nearest(key, same, 0) or nearest(key, known)), help_)


def unknown_option(command: str, path: str, text: str = "", config_dir: str | None = None) -> UsageError:
    """What to say of group/name where there is no such option; those of Hydra's own groups are listed in `text`."""
    known = groups(command, config_dir)
    if extra := EXTRAS.get(path):
        option = "=".join(path.rsplit("/", 1))
        return UsageError(f"{option} needs what is not installed here", f'pip install "diffcli[{extra}]"')
    group, _, name = path.partition("/") if path.partition("/")[0] in known else path.rpartition("/")
    options = known.get(group) or re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    if not name:
        return UsageError(f"{group}= is empty", f"{group}=" + "|".join(options))
    return UsageError(f"no {group} named {name!r}{nearest(name, options)}", f"{group}=" + "|".join(options))


def _odd_option(command: str, settings: list[str], config_dir: str | None) -> UsageError:
    """For a group's value that is no name at all, as in optim=5; Hydra does not say which."""
    known = groups(command, config_dir)
    for key, _, value in (s.lstrip("+").partition("=") for s in settings):
        if not key:
            return _unreadable(command, f"={value}", config_dir)
        if key in known and value not in known[key]:
            return unknown_option(command, f"{key}/{value}", config_dir=config_dir)
    return UsageError("a group's option must be one of its names", f"diffcli {command} --help")


def _unreadable(command: str, word: str, config_dir: str | None) -> UsageError:
    """For a word that is not of the form key=value."""
    refused = f"cannot read {word!r}: settings are written key=value"
    if "=" in word:
        key, _, value = word.partition("=")
        plain = "(" in value and not set(value) & set("\"'")
        example = f"'{key}=\"{value}\"'" if plain else "'key=\"a=b\"'"
        return UsageError(refused, f"quote a value that holds = , [ or ( twice, once for the shell: {example}")
    known = known_keys(command, config_dir)
    if word in known:
        return UsageError(f"{refused}, without spaces", f"{word}=VALUE")
    return UsageError(f"{refused}, without spaces{nearest(word, known, 0.6)}", f"diffcli {command} --help")
