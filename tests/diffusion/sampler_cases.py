"""Every sampler of conf/sampler, and the settings of them that change what they are."""

import importlib
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).resolve().parents[2] / "conf/sampler"
VARIANTS = {  # name -> option and settings that are tested beside the defaults
    "ddim-half": ("ddim", dict(eta=0.5)),
    "ddim-1": ("ddim", dict(eta=1.0)),
    "euler-t": ("euler", dict(variable="t")),
    "heun-t": ("heun", dict(variable="t")),
    "heun-lam": ("heun", dict(variable="lam")),
    "rk4-lam": ("rk4", dict(variable="lam")),
    "deis-rk": ("deis", dict(starter="rk")),
    "deis-2": ("deis", dict(order=2)),
    "deis-x0": ("deis", dict(variable="x0")),
    "deis-v": ("deis", dict(variable="v", starter="rk", sigma_data=0.8)),
    "deis-4": ("deis", dict(order=4, starter="rk", final=3)),
    "lms-rk": ("lms", dict(starter="rk")),
    "dpmpp_3m-rk": ("dpmpp_3m", dict(starter="rk")),
    "dpmpp_3m-released": ("dpmpp_3m", dict(released=True)),
    "unipc-1": ("unipc", dict(order=1)),
    "unipc-2": ("unipc", dict(order=2, variant="bh1")),
    "unipc-rk": ("unipc", dict(starter="rk", variable="eps")),
    "pndm-ramp": ("pndm", dict(starter="ramp")),
    "dpm3-half": ("dpm3", dict(r2=0.5)),
    "dpm_adaptive-2": ("dpm_adaptive", dict(order=2)),
    "dpmpp_2m_sde-heun": ("dpmpp_2m_sde", dict(variant="heun", eta=0.5)),
    "ancestral-large": ("ancestral", dict(variance="large")),
}


def make(option: str, **settings):
    """The sampler of a yaml, with some settings changed."""
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text()) | settings
    if "predictor" in node:
        node["predictor"] = make(node["predictor"])
    module, _, name = node.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name)(**node)


FITTED = {"tuned", "universal"}  # walks that are fitted, to a model or to the times: test_tuning has them
SAMPLERS = {p.stem: make(p.stem) for p in sorted(CONF.glob("*.yaml")) if p.stem not in FITTED} | {
    name: make(option, **settings) for name, (option, settings) in VARIANTS.items()
}
FIXED = {n: s for n, s in SAMPLERS.items() if s.evaluations is not None}
# from noise to data along the marginals, with an order: a corrector of its own step size has none
WALKS = {n: s for n, s in FIXED.items() if s.kind != "score" and s.order is not None}
ODE = {n: s for n, s in WALKS.items() if s.kind == "ode"}
SDE = {n: s for n, s in WALKS.items() if s.kind == "sde"}


def over(samplers: dict):
    """Parametrises a test over samplers by name; dpm_taylor's tangents of tangents are for the heavy set."""
    heavy = {"dpm_taylor": pytest.mark.heavy}
    return pytest.mark.parametrize(
        "sampler", [pytest.param(s, id=n, marks=heavy.get(n, ())) for n, s in samplers.items()]
    )
