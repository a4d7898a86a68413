"""Processes and schedules from the command line: trained, stored, walked, and refused with a sentence."""

import json
import shlex

import pytest
import torch

from diffcli.checkpoint import read
from diffcli.data.measure import largest_distance
from diffcli.data.points import Points

TINY = ("data=moons", "trainer.max_steps=1", "batch_size=8", "network.width=8", "network.blocks=1", "preview.every=0")


def config(folder):
    return read(folder / "checkpoints" / "last.ckpt")["config"]


RUNS = {
    "ddpm": ("schedule=ddpm", "schedule.T=40", "schedule.beta_max=16.0"),
    "ddpm cosine": ("schedule=ddpm", "schedule.T=30", "schedule.betas=cosine"),
    "ddpm list": ("schedule=ddpm", "schedule.betas=[0.5,0.9,0.9,0.9]"),
    "ncsn": ("sde=ve", "schedule=ncsn", "schedule.L=12"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_chain_is_trained_and_all_its_levels_are_walked(cli, tmp_path, name):
    done = cli("train", *RUNS[name], *TINY, "out=run")
    assert done.code == 0, done.err
    done = cli("sample", "ckpt=run/checkpoints/last.ckpt", "sampler=ancestral", "grid=levels", "n=2", "out=drawn")
    assert done.code == 0, done.err
    levels = {"ddpm": 40, "ddpm cosine": 30, "ddpm list": 4, "ncsn": 12}[name]
    record = json.loads((tmp_path / "drawn/run.json").read_text())
    assert record["steps"] == levels - 1
    assert record["nfe"]["min"] == record["nfe"]["max"] == levels


OWN = {
    "ou": ("sde=ou", "sde.theta=6"),
    "edm": ("sde=edm",),
    "path": ("sde=path",),
    "path in words": ("sde=path", 'sde.alpha="exp(-4*t)"', 'sde.sigma="sqrt(1.001 - exp(-8*t))"'),
    "drift": ("sde=drift",),
    "drift in words": ("sde=drift", 'sde.f="-3*t - 2"', 'sde.g="sqrt(4 + 6*t)"', "sde.sigma_0=0.01"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_process_is_trained_stored_and_sampled(cli, tmp_path, name):
    done = cli("train", *OWN[name], *TINY, "out=run")
    assert done.code == 0, done.err
    done = cli("sample", "ckpt=run/checkpoints/last.ckpt", "n=2", "steps=3", "out=drawn")
    assert done.code == 0, done.err


def test_a_trained_process_cannot_be_changed_but_for_its_t_min(cli):
    assert cli("train", "sde=ou", *TINY, "out=run").code == 0
    done = cli("nll", "ckpt=run/checkpoints/last.ckpt", "sde.theta=3")
    assert done.code == 2
    assert done.err == "error: sde.theta is part of the trained model and cannot be changed\ntry: sde.t_min=VALUE\n"


@pytest.mark.parametrize("words", [("sde=ve",), ("sde=edm",), ("sde=ve", "schedule=ncsn")], ids="-".join)
def test_sigma_max_auto_is_measured_and_stored_as_a_number(cli, tmp_path, words):
    done = cli("train", *words, "schedule.sigma_max=auto", *TINY, "data.n=400", "out=run")
    assert done.code == 0, done.err
    assert done.out.startswith("schedule.sigma_max = ")
    stored = config(tmp_path / "run")
    items = torch.stack([x for x, *_ in Points("moons", n=400).split("train")])
    expected = largest_distance(items)
    for node in (stored["schedule"], stored["denoiser"]["sde"]["schedule"]):
        assert node["sigma_max"] == pytest.approx(expected, rel=1e-6)


REFUSED = {
    "a schedule for a clock": ("train sde=ou schedule=linear data=moons", "sde=ou has a clock of its own and takes no schedule"),
    "a schedule for a path": ("train schedule=cosine sde=path data=moons", "sde=path has a clock of its own"),
    "theta": ("train sde=ou sde.theta=0 data=moons", "theta must be above 0, got 0"),
    "name": ("train sde=path 'sde.alpha=1 - s' data=moons", "the expression '1 - s' has the name 's'"),
    "function": ("train sde=path 'sde.sigma=\"tan(t)\"' data=moons", "calls 'tan'"),
    "code": ("train sde=drift 'sde.f=\"__import__(1)\"' data=moons", "calls '__import__'"),
    "rising": ("train sde=path 'sde.alpha=0.1 + t' sde.sigma=0.5 data=moons", "lam = log(alpha/sigma) must fall as t rises"),
    "no noise": ("train sde=drift sde.g=0 data=moons", "lam = log(alpha/sigma) is not finite at t = 1e-05"),
    "list": ("train sde=path sde.alpha=[1,2] data=moons", "sde.alpha must be"),
    "beta": ("train schedule=ddpm schedule.T=5 data=moons", "T = 5 is too small: beta_T would be 4, and must be below 1"),
    "betas": ("train schedule=ddpm schedule.betas=lineal data=moons", "'linear'"),
    "a list too large": ("train schedule=ddpm schedule.betas=[0.1,1.5] data=moons", "must lie between 0 and 1"),
    "one level": ("train sde=ve schedule=ncsn schedule.L=1 data=moons", "L must be at least 2, got 1"),
    "automatic": ("train sde=ve schedule.sigma_max=automatic data=moons", "schedule.sigma_max"),
    "tau": ("train schedule=sigmoid schedule.tau=0 data=moons", "tau must be above 0, got 0"),
    "before the levels": ("train schedule=ddpm sde.t_min=1e-5 data=moons", "lies before the first level, at t = 0.001"),
    "grid without levels": ("train grid=levels data=moons", "grid=levels needs a schedule with levels, schedule=ddpm"),
    "grid, sample": ("sample network=exact data=mixture sde=ou grid=levels", "grid=levels needs a schedule with levels"),
    "more steps than levels": (
        "sample network=exact data=mixture sde=vp schedule=ddpm schedule.T=30 grid=levels steps=30",
        "there are 30 levels, so at most 29 steps, got 30",
    ),
    "steps of the preview": (
        "train sde=ve schedule=ncsn schedule.L=10 schedule.sigma_max=5 network=mlp grid=levels data=moons",
        "at most 9 steps, got 10\ntry: another preview.steps or grid",
    ),
    "no schedule": ("train schedule=none data=moons", "sde=vp needs a schedule"),
    "no schedule, sample": ("sample network=exact sde=vp schedule=none", "sde: it follows a schedule"),
    "parentheses": (
        "train sde=path 'sde.alpha=cos(pi/2*t)' data=moons",
        "try: quote a value that holds = , [ or ( twice, once for the shell: 'sde.alpha=\"cos(pi/2*t)\"'",
    ),
    "auto without data": ("sample network=exact data=mixture sde=ve schedule.sigma_max=auto", "sigma_max=auto needs data"),
}  # fmt: skip


QUIET = {  # too little noise at t_max -> the setting to change
    "sde=vp schedule.beta_max=1": "a larger schedule.beta_max",
    "sde=vp schedule=constant schedule.beta=1": "a larger schedule.beta\n",
    "sde=vp schedule=ddpm schedule.betas=[0.1,0.2]": "larger schedule.betas, or",
    "sde=ve schedule.sigma_max=1": "a larger schedule.sigma_max",
    "sde=ve schedule=ncsn schedule.sigma_max=1": "a larger schedule.sigma_max",
    "sde=ou sde.theta=0.1": "a larger sde.theta or sde.horizon",
    "sde=ou sde.s=0.01": "a larger sde.s\n",
    "sde=path sde.alpha=1-t/2 sde.sigma=t": "an sde.alpha that falls further",
    "sde=path sde.alpha=1 sde.sigma=t": "a larger sde.sigma",
    "sde=drift sde.f=-1 sde.g=1": "a lower sde.f",
    "sde=drift sde.f=0 sde.g=1": "a larger sde.g",
}


@pytest.mark.parametrize("line", QUIET)
def test_says_what_would_give_more_noise(cli, line):
    done = cli(
        "train", *shlex.split(line), "data=moons", "data.n=50", "network=mlp", "trainer.max_steps=1", "dry_run=true"
    )
    assert done.code == 2, done.err
    assert done.err.partition("\ntry: ")[2].startswith(QUIET[line]), done.err


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_one_sentence(cli, tmp_path, name):
    line, sentence = REFUSED[name]
    done = cli(*shlex.split(line), *(["trainer.max_steps=1"] if line.startswith("train") else []))
    assert done.code == 2, done.err
    assert sentence in done.err
    assert done.err.startswith("error: ") and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())
