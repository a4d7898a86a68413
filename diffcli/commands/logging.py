"""The logger of a training, and what a sweep's jobs have in common in it."""

from pathlib import Path

from diffcli.commands.build import build


def build_logger(config: dict, path: Path):
    """The logger that the settings ask for beside metrics.csv, None for none; jobs of a sweep are runs of one group.

    Raises UsageError for a setting that does not fit.
    """
    if not config["logger"]:
        return None
    node = config["logger"] | {"save_dir": str(path)}
    sweep, number = _sweep(config)
    if sweep and "group" in node and node["group"] is None:
        node["group"] = sweep
    if sweep and "name" in node and node["name"] is None:
        node["name"] = f"{node['group']}-{number}"
    return build(node, "logger")


def _sweep(config: dict) -> tuple[str | None, int]:
    """The name of the sweep's folder and the number of this job in it; None where this is no sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None, 0
    found = HydraConfig.get()
    return Path(config["out"] or found.sweep.dir).name, found.job.num
