"""Models that are not finite, fields that no solver follows: each ends by a sentence, under `python -O` too, without samples."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
TINY = ("data=moons", "trainer.max_steps=2", "batch_size=16", "preview.every=0", "network.width=8")
NETWORK = """
import torch
from torch import nn

BELOW, VALUE = -1.0, float("nan")  # from which time on it returns what


class Net(nn.Module):
    def __init__(self, shape: list[int], width: int = 8):
        super().__init__()
        self.inner = nn.Linear(shape[0] + 1, shape[0])

    def forward(self, x, c_noise):
        found = self.inner(torch.cat([x, c_noise[:, None] / 1000], dim=1))
        return torch.where(c_noise[:, None] < 1000 * BELOW, VALUE, found)
"""
YAML = """# goes wrong from some time on
_target_: spoiled.Net
shape: null
width: 8
"""


@pytest.fixture
def trained(cli, tmp_path, monkeypatch):
    """A checkpoint of a network of one's own, which was sound while it was trained; its module."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/spoiled.py").write_text(NETWORK)
    (tmp_path / "conf/network").mkdir(parents=True)
    (tmp_path / "conf/network/spoiled.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = cli("train", "--config-dir", tmp_path / "conf", "network=spoiled", *TINY, "out=run")
    assert done.code == 0, done.err
    yield sys.modules["spoiled"]
    sys.modules.pop("spoiled", None)


def ended(cli, tmp_path, *words):
    """The sentence of a run that ended with exit 4; it left no samples, and says failed in run.json."""
    done = cli(*words, "out=out", "overwrite=true")
    assert done.code == 4, (words, done.err)
    lines = [line for line in done.err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "failed"
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert not left & {"samples.npy", "grid.png", "latents.npy", "nll.csv", "card.json"}, left
    return lines[0]


CKPT = ("ckpt=run/checkpoints/last.ckpt", "trust=spoiled")


def test_a_network_that_returns_nan_from_some_t_on(cli, tmp_path, trained, injected):
    trained.BELOW = 0.4
    commands = {
        (
            "sample",
            "n=3",
            "sampler=ddim",
            "steps=20",
        ): r"DDIM: the model's estimate is not finite at t = 0\.3\d* after \d+",
        (
            "sample",
            "n=3",
            "sampler=rk45",
        ): r"RK45: met a non-finite value.* at t = 0\.[34]\d* after \d+ .*\(sample \d\)",
        ("sample", "n=3", "sampler=ancestral", "steps=20"): r"Ancestral: .* at t = 0\.3\d* after \d+ .*\(sample 0\)",
        ("sample", "n=3", "sampler=mode", "steps=20"): r"Mode: .* at t = 0\.001 after 1 evaluation \(sample 0\)",
        ("nll", "n=3"): r"the likelihood: met a non-finite value at t = .* after 1 evaluation \(item 0\)",
        ("nll", "n=3", "likelihood=path"): r"PathIntegral: the score is not finite .* at t = 1e-05 after \d+",
        ("encode", "n=3"): r"not finite at t = 0\.001 after \d evaluation.*\(item 0\)",
        ("evaluate", "n=20", "steps=20"): r"estimate is not finite at t = 0\.3\d* after \d+ .*\(sample 0\)",
    }
    for (command, *words), said in commands.items():
        line = ended(cli, tmp_path, command, *CKPT, *words)
        assert re.search(said, line), line
    injected("a network that returns NaN from some t on", "exit 4, names t, evaluations, item", n=8, survived=8)


def test_a_network_that_overflows(cli, tmp_path, injected):
    """Weights that are finite, whose products are not."""
    assert cli("train", "network=mlp", *TINY, "out=run").code == 0
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    for name, value in content["state_dict"].items():
        if value.is_floating_point() and value.ndim == 2:
            content["state_dict"][name] = torch.where(value == 0, 1e30, value.sign() * 1e30)
    torch.save(content, path)
    for sampler in ("ddim", "rk45", "dpmpp_2m_sde"):
        line = ended(cli, tmp_path, "sample", CKPT[0], "weights=raw", "n=3", f"sampler={sampler}")
        assert re.search(r"finite.* at t = 1 after 1 evaluation \(sample 0\)", line), line
    injected("a network that overflows", "exit 4, names t, evaluations, item", n=3, survived=3)


def test_a_budget_that_is_too_small_and_one_that_is_raised(cli, tmp_path, injected):
    exact = ("network=exact", "data=mixture", "n=3", "sampler=rk45")
    line = ended(cli, tmp_path, "sample", *exact, "sampler.max_nfe=30")
    assert re.search(r"tol = 1e-05 takes more than 30 evaluations, stopped at t = \S+ after 3\d .*\(sample \d\)", line)
    assert cli("sample", *exact, "sampler.max_nfe=1000", "out=raised").code == 0
    line = ended(cli, tmp_path, "nll", *exact[:3], "likelihood.solver=rk45", "likelihood.max_nfe=30")
    assert "the likelihood: tol = 1e-05 takes more than 30 evaluations, stopped at t = " in line
    assert cli("sample", *exact, "sampler.max_nfe=0").code == 2
    injected("an adaptive solver out of evaluations", "exit 4, names t and tol; max_nfe= raises it", n=2, survived=2)


DRIVER = """
import json, math, sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
from cases import build
from diffcli.diffusion.endings import Ended
from diffcli.errors import NumericalError
from diffcli.training.neural_ode import NeuralODE
from test_endings import BAD_T, SOLVERS, WRONG, Drift, Spoiled, FIELDS, likelihood_of, walk, yamls, from_above

found, sde = {{}}, build("vp", "linear")

def record(name, call):
    try:
        call()
        found[name] = None
    except NumericalError as error:
        found[name] = str(error)

for name, sampler in yamls().items():
    record(name, lambda: walk(sampler, Spoiled(sde, WRONG["nan"], BAD_T)))
for solver in SOLVERS:
    record("nll " + solver, lambda: likelihood_of(Spoiled(sde, from_above(WRONG["nan"])), solver))
x = torch.ones(3, 2)
for field in ("nan", "pole", "stiff"):
    record("cnf " + field, lambda: NeuralODE(300)(
        Drift(FIELDS[field]), (x, x.new_zeros(3)), 0.0, 1.0, "adjoint", "rk45", 1e-5, 20))

# the stock part: its steps vanish at a pole, which an assert would say
from torchdiffeq import odeint
class Enough(Exception): pass
class Pole:
    calls = 0
    def __call__(self, t, x):
        self.calls += 1
        if self.calls > 3000:
            raise Enough
        return torch.where(t > 0.3, math.nan, -x)
try:
    odeint(Pole(), x, torch.tensor([0.0, 1.0]))
    stock = "returned"
except Enough:
    stock = "goes on"
except AssertionError:
    stock = "assert"
print(json.dumps([bool(__debug__), stock, found]))
"""


@pytest.mark.heavy
def test_under_python_o(tmp_path, injected):
    """No assert does the work: every solver ends as it does without -O."""
    (tmp_path / "driver.py").write_text(DRIVER.format(folder=str(TESTS / "diffusion")))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-O", "driver.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    debug, stock, found = json.loads(done.stdout.splitlines()[-1])
    assert not debug and stock == "goes on", stock
    assert len(found) >= 33 + 4 + 3
    unsaid = [
        name for name, said in found.items() if not said or not re.search(r" at t = \S+ after \d+ evaluation", said)
    ]
    assert unsaid == []
    expected, says = "ends, names t and evaluations", "torchdiffeq under -O shrinks its steps for ever"
    injected(
        "NaN from some t on, in every solver, under python -O", expected, n=len(found), survived=len(found), stock=says
    )


def test_sampling_under_python_o(cli, tmp_path, trained, injected):
    """The command, in a process of its own."""
    (tmp_path / "code/spoiled.py").write_text(NETWORK.replace("BELOW, VALUE = -1.0", "BELOW, VALUE = 0.4"))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "code")}
    words = ("sample", *CKPT, "n=3", "sampler=ddim", "steps=20", "out=o")
    done = subprocess.run(
        [sys.executable, "-O", "-m", "diffcli", *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    assert re.search(r"^error: DDIM: the model's estimate is not finite at t = 0\.3", done.stderr, re.M), done.stderr
    assert not (tmp_path / "o/samples.npy").exists()
    injected("diffcli sample under python -O, NaN from some t on", "exit 4, no samples.npy")


@pytest.mark.heavy
def test_drifts_that_are_singular_or_jump(cli, tmp_path, injected):
    """An SDE of the user's own: refused by a sentence, or walked to finite samples."""
    exact = ("network=exact", "data=mixture", "n=3", "sde=drift")
    cases = {
        "1/t": ("sde.f=-1/t", "sde.g=1"),
        "1/(1-t)": ("sde.f=-1/(1-t)", "sde.g=1"),
        "pole inside": ("sde.f=-1/(t-0.5)", "sde.g=1"),
        "noise 1/t": ("sde.f=-1", "sde.g=1/t"),
        "stiff": ("sde.f=-500", "sde.g=30"),
        "no noise": ("sde.f=-1", "sde.g=0"),
        "constants": ("sde.f=-5", "sde.g=3"),
    }
    codes = {}
    for name, words in cases.items():
        for sampler in ("sampler=heun", "sampler=rk45"):
            done = cli("sample", *exact, *words, sampler, "out=d", "overwrite=true")
            assert done.code in (0, 2, 4), (name, done.err)
            codes[name, sampler] = done.code
            assert done.code == 0 or done.err.count("error: ") == 1, (name, done.err)
    assert codes["constants", "sampler=heun"] == codes["constants", "sampler=rk45"] == 0
    assert codes["1/t", "sampler=heun"] != 0 and codes["pole inside", "sampler=heun"] != 0
    injected(
        "drifts with poles, stiff, without noise", "finite samples, or a sentence", n=len(codes), survived=len(codes)
    )
