"""An option of a config group by its name, with settings, where a setting or a list names it: `deis order=4 variable=x0`."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffcli.advice import nearest
from diffcli.errors import UsageError
from diffcli.help import folders


def config_dir() -> str | None:
    """The user's own config folder, of this command's --config-dir."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return next((s.path for s in sources if s.provider == "command-line" and s.path), None)


def names(group: str, user: str | None = None) -> list[str]:
    """The options of a group: diffcli's and those of the user's config folder."""
    return sorted({path.stem for folder in folders(user) for path in (folder / group).glob("*.yaml")})


def path(group: str, name: str, user: str | None = None) -> Path:
    """The yaml of an option that is there."""
    return next(p for p in (folder / group / f"{name}.yaml" for folder in folders(user)) if p.is_file())


def words(text: str, where: str) -> tuple[str, dict[str, object]]:
    """`NAME key=value ...` as the name and the settings, with values as on the command line.  Raises UsageError.

    A value with spaces in it is written without them, `[1,2]`.
    """
    name, *settings = (text.split() if isinstance(text, str) else [text]) or [""]
    if not isinstance(name, str) or not name or "=" in name:
        raise UsageError(f"{where}: {text!r} does not begin with a name", f"{where}='NAME key=value'")
    found = {}
    for word in settings:
        key, _, value = word.partition("=")
        try:
            parsed = OverridesParser.create().parse_override(f"value={value}")
            if not key or not value or parsed.is_sweep_override():
                raise ValueError
        except (HydraException, ValueError):
            raise UsageError(f"{where}: cannot read {word!r} in {text!r}: settings are written key=value") from None
        if key in found:
            raise UsageError(f"{where}: {key} is there twice in {text!r}")
        found[key] = parsed.value()
    return name, found


def option(group: str, text: str, where: str | None = None, user: str | None = None) -> dict:
    """The plain node of `NAME key=value ...`: the yaml of that option with these settings; a.b=value reaches into a node.

    where: what to call it in a refusal, by default the group.  user: the folder searched first, by default --config-dir.
    Raises UsageError that names the nearest match for an option or a setting that is not there.
    """
    name, settings = words(text, where or group)
    return changed(load(group, name, user or config_dir()), settings, f"{group}={name}")


def load(group: str, name: str, user: str | None = None) -> dict:
    """The plain node of an option as its yaml has it, on top of the options of the same group in its defaults list."""
    known = names(group, user)
    if name not in known:
        raise UsageError(f"no {group} named {name!r}{nearest(name, known)}", f"one of {', '.join(known)}")
    file = path(group, name, user)
    try:
        node = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no yaml: {' '.join(str(error).split())}") from None
    bases = [base for base in node.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    whole = {}
    for base in bases:
        whole |= load(group, base, user) if base != name else load(group, base)  # the user's deis, on top of diffcli's
    return whole | node


def changed(node: dict, settings: dict[str, object], where: str) -> dict:
    """A copy of the node with these settings.  Raises UsageError for one that it does not have."""
    node = dict(node)
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        known = [k for k in node if not k.startswith("_")]
        if first not in known or (rest and not isinstance(node[first], dict)):
            fits = f"one of {', '.join(known)}" if known else f"{where} alone"
            raise UsageError(f"{where} has no setting {key!r}{nearest(key, known)}", fits)
        node[first] = changed(node[first], {rest: value}, f"{where}: {first}") if rest else value
    return node


def filled(node: dict, **groups: str) -> dict:
    """A copy of the node whose keys in `groups` (key=group) are nodes where they were names: `predictor: ddim eta=1`."""
    return node | {
        key: option(group, node[key], key) for key, group in groups.items() if isinstance(node.get(key), str)
    }
