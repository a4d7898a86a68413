"""Every process that the configs describe."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from diffcli.paths import conf_dir


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def _node(group: str, name: str) -> dict:
    node = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / group / f"{name}.yaml"), resolve=False)
    return {k: v for k, v in node.items() if k != "defaults"}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))


def processes() -> dict:
    """id -> SDE, all of conf/sde with all of conf/schedule but the model of one level, which is no process."""
    found = {}
    for sde in names("sde"):
        node = _node("sde", sde)
        if sde == "one":
            continue
        for schedule in names("schedule") if "schedule" in node else [None]:
            if schedule == "none":
                continue
            made = node | ({} if schedule is None else {"schedule": _node("schedule", schedule)})
            found[sde if schedule is None else f"{sde}-{schedule}"] = instantiate(made, _convert_="all")
    return found


def _usual(sde: str) -> str:
    for item in OmegaConf.load(Path(conf_dir()) / "sde" / f"{sde}.yaml").get("defaults", []):
        for key, value in item.items() if hasattr(item, "items") else ():
            if "schedule" in key:
                return sde if value == "none" else f"{sde}-{value}"
    return sde


PROCESSES = processes()
USUAL = [_usual(sde) for sde in names("sde") if sde != "one"]
every_process = pytest.mark.parametrize("sde", [pytest.param(s, id=n) for n, s in PROCESSES.items()])
usual = pytest.mark.parametrize("sde", [pytest.param(PROCESSES[n], id=n) for n in USUAL])
