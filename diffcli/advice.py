"""From Hydra's complaints to a sentence that names the nearest right word."""

import difflib
import re

from diffcli.errors import UsageError
from diffcli.help import folders, groups


def nearest(word: str, known) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def known_keys(command: str, config_dir: str | None = None) -> list[str]:
    """Every key that can be set: the command's own, its groups, and each group's keys."""
    import yaml

    def flat(node, prefix=""):
        for key, value in node.items() if isinstance(node, dict) else ():
            if key not in ("defaults", "hydra", "denoiser", "_target_"):
                yield prefix + key
                yield from flat(value, f"{prefix}{key}.")

    found = []
    for name in ("common", command):
        found += flat(yaml.safe_load((folders()[-1] / f"{name}.yaml").read_text()))
    for group, options in groups(command, config_dir).items():
        found.append(group)
        for folder in folders(config_dir):
            for option in options:
                path = folder / group / f"{option}.yaml"
                if path.is_file() and group not in ("sweep", "experiment"):
                    node = yaml.safe_load(path.read_text()) or {}
                    found += flat(node.get(group, node) if "@package" in path.read_text() else node, f"{group}.")
    return list(dict.fromkeys(found))


def explain(command: str, error: Exception, config_dir: str | None = None) -> UsageError:
    """The UsageError that says what one of Hydra's composition errors means."""
    text = str(error)
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        key = match.group(1).split("@")[0]
        known = known_keys(command, config_dir)
        leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        advice = nearest(key, known) or (f", did you mean {leaf[0]!r}?" if leaf else "")
        return UsageError(f"{command} has no setting {key!r}{advice}", f"diffcli {command} --help")
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match.groups()
        options = groups(command, config_dir).get(group, {})
        return UsageError(f"no {group} named {name!r}{nearest(name, options)}", f"{group}=" + "|".join(options))
    if match := re.search(r"(?:Error parsing override|parsing override) '([^']*)'", text):
        return UsageError(
            f"cannot read {match.group(1)!r}: settings are written key=value",
            "quote a value that holds = , [ or spaces, like 'key=\"a=b\"'",
        )
    if match := re.search(r"Multiple values for (\S+)\.|Ambiguous value for argument '([^']+)'", text):
        word = next(g for g in match.groups() if g)
        return UsageError(f"{word.split('=')[0]} has several values", f"diffcli {command} -m {word} sweeps over them")
    if "config directory" in text:
        return UsageError(text.splitlines()[0])
    return UsageError(" ".join(text.split()), f"diffcli {command} --help")
