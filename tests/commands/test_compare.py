"""diffcli compare: its numbers are those of sample, of an end found otherwise, and of two-sample distances; its ties are honest."""

import csv
import json
import re

import numpy as np
import pytest
import torch

from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.samplers import RK4, sample
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.explain.comparison import Cell, Comparison, text
from diffcli.metrics.ruler import Ruler
from diffcli.metrics.two_sample import mmd, sliced_wasserstein
from diffcli.randomness import ItemNoise

EXACT = ("network=exact", "data=mixture")


def cells(cli, tmp_path, *asked, out="c"):
    """The rows of compare.csv by (sampler, budget), and what was printed."""
    done = cli("compare", *EXACT, f"out={out}", *asked)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / out).iterdir()} == {"run.json", "compare.csv", "compare.md", "compare.png"}
    with (tmp_path / out / "compare.csv").open() as file:
        return {(row["sampler"], row["budget"]): row for row in csv.DictReader(file)}, done.out


def number(row, what="error"):
    return float(row[what])


def test_its_numbers_are_those_of_sample_and_of_an_end_found_otherwise(cli, tmp_path):
    words = ("n=48", "seed=3", "grid.t_min=0.1")  # where alpha = 0.95
    found, out = cells(cli, tmp_path, "samplers=[ddim,heun,ancestral,rk45]", "nfe=[9,16]", "endpoints=16", *words)
    assert set(found) == {
        ("ddim", "9"),
        ("ddim", "16"),
        ("heun", "9"),
        ("heun", "16"),
        ("ancestral", "9"),
        ("ancestral", "16"),
        ("rk45", ""),
    }
    assert [found["heun", "9"][w] for w in ("steps", "nfe")] == ["4", "8.0"]
    assert [found["ancestral", "9"][w] for w in ("steps", "nfe")] == ["8", "9.0"]  # one denoises
    assert found["ancestral", "16"]["error"] == ""
    assert found["rk45", ""]["steps"] == ""
    # the end by another method, from the starts that sample has
    sde, data = VP(Linear()), Mixture()
    model, starts = Exact(sde, data.mixture), ItemNoise(3, range(16), (2,), torch.float64)(0)
    end = sample(model, RK4(), sde.sample_prior(starts), UniformLam(0.1)(sde, 400), None).x
    alpha = sde.alpha(torch.tensor(0.1, dtype=torch.float64))
    for name, budget, steps in (("ddim", "9", 9), ("heun", "16", 8), ("rk45", "", 1)):
        more = () if name == "rk45" else (f"steps={steps}",)
        run = f"{name}{budget}"
        assert cli("sample", *EXACT, f"sampler={name}", *more, *words, "dtype=float64", f"out={run}").code == 0
        x = torch.from_numpy(np.load(tmp_path / run / "samples.npy"))
        error = ((x[:16] - end) / alpha / 2**0.5).norm(dim=1).median().item()
        assert number(found[name, budget]) == pytest.approx(error, rel=1e-3, abs=1e-7)
        distance = Ruler(data.split("test").__getitems__(range(10000))[0], 48, 3)(x)
        assert number(found[name, budget], "sliced_wasserstein") == pytest.approx(
            distance["sliced_wasserstein"], rel=1e-9
        )
        assert number(found[name, budget], "mmd2") == pytest.approx(distance["mmd2"], rel=1e-6)
    assert "NFE 16: use heun: least error heun" in out or "NFE 16: use ddim: least error ddim" in out


@pytest.mark.heavy
def test_a_sampler_has_settings_and_a_grid_of_its_own(cli, tmp_path):
    """And nothing depends on its company or on the batch size."""
    own, words = "deis order=2 grid=karras grid.rho=5", ("n=40", "endpoints=20", "dtype=float32")
    one, _ = cells(cli, tmp_path, f'samplers=[ddim,"deis order=2","{own}"]', "nfe=[7]", "batch_size=16", *words)
    two, _ = cells(cli, tmp_path, 'samplers=["deis order=2"]', "nfe=7", "grid=karras", "grid.rho=5", *words, out="d")
    for what in ("error", "sliced_wasserstein", "mmd2"):
        assert number(one[own, "7"], what) == pytest.approx(number(two["deis order=2", "7"], what), rel=1e-6)
    assert number(one["deis order=2", "7"]) != pytest.approx(number(one[own, "7"]), rel=0.1)


@pytest.mark.heavy
def test_noise_helps_where_the_network_errs(cli, tmp_path):
    """An ODE carries its errors along, Langevin's part of the SDE forgets them."""
    words = ("samplers=[dpmpp_2m,ancestral]", "nfe=[60]", "n=600", "endpoints=10", "batch_size=600", "dtype=float32")
    exact, out = cells(cli, tmp_path, *words)
    assert "use dpmpp_2m" in out
    assert "as two halves of the data; not told from it" in out
    wrong, out = cells(cli, tmp_path, *words, "network.error=0.15", out="d")
    assert "use ancestral" in out
    ode, sde = (number(wrong[name, "60"], "sliced_wasserstein") for name in ("dpmpp_2m", "ancestral"))
    assert ode > 2 * sde
    assert ode > 2 * number(exact["dpmpp_2m", "60"], "sliced_wasserstein")
    assert number(wrong["dpmpp_2m", "60"]) < 0.05  # its end is that of the model with the error


def test_nothing_is_dropped_in_silence(cli, tmp_path):
    samplers = "samplers=[ddim,dpm2,'ancestral variance=learned']"
    found, out = cells(cli, tmp_path, samplers, "nfe=[1,4]", "n=20", "dtype=float32")
    assert ("dpm2", "1") not in found
    assert found["ancestral variance=learned", ""]["note"].startswith("variance=learned needs a model")
    assert "left out: ancestral variance=learned: variance=learned needs a model" in out
    assert re.search(r"dpm2 +–", out)
    page = (tmp_path / "c/compare.md").read_text()
    assert "| `dpm2` | – | " in page
    results = json.loads((tmp_path / "c/run.json").read_text())["results"]
    assert results["best"]["1"]["use"] == "ddim"
    assert results["refused"].keys() == {"ancestral variance=learned"}


def test_a_free_field_has_its_ode_samplers(cli, tmp_path):
    tiny = (
        "network=mlp",
        "network.width=8",
        "network.blocks=1",
        "batch_size=8",
        "preview.every=0",
        "trainer.max_steps=2",
    )
    done = cli("train", "data=moons", "loss=cnf", "prediction=velocity", "sde=flow", "loss.steps=2", *tiny, "out=t")
    assert done.code == 0, done.err
    done = cli(
        "compare", "ckpt=t/checkpoints/last.ckpt", "samplers=[ddim,ancestral,langevin]", "nfe=4", "n=20", "out=c"
    )
    assert done.code == 0, done.err
    assert done.out.count("left out: ") == 2
    assert "left out: ancestral: the model is a free field (cnf, source)" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["samplers=[ddimm]"], "samplers: no sampler named 'ddimm', did you mean 'ddim'?"),
        (["samplers=[]"], "samplers=[] names no sampler"),
        (["samplers=[ddim,ddim]"], "samplers: 'ddim' is there twice"),
        (['samplers=["deis order=9"]'], "samplers: deis order=9: order must lie between 1 and 4, got 9"),
        (['samplers=["deis ordr=2"]'], "samplers: deis ordr=2: sampler=deis has no setting 'ordr', did you mean 'order'?"),
        (['samplers=["ddim grid=karas"]'], "samplers: no grid named 'karas', did you mean 'karras'?"),
        (['samplers=["ddim grid.rho=3"]'], "samplers: ddim grid.rho=3: its grid has no setting 'rho'"),
        (["samplers=ddim", "grid=levels"], "ddim: grid: grid=levels needs a schedule with levels"),
        (["samplers='ancestral variance=learned'"], "ancestral variance=learned: variance=learned needs a model"),
        (["nfe=0"], "nfe must be at least 1, got 0"),
        (["nfe=[5,0]"], "nfe must be at least 1, got 0"),
        (["nfe=[]"], "nfe=[] names no number of evaluations"),
        (["nfe=[5.5]"], "nfe must be a list (a whole number each) or a whole number, got [5.5]"),
        (["n=1"], "n=1 samples and 10000 items of data leave 1 to compare"),
        (["n=null"], "n must be a whole number"),
        (["endpoints=0"], "endpoints must be at least 1, got 0"),
        (["network.error=-1"], "network: error must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(cli, tmp_path, words, sentence):
    done = cli("compare", *EXACT, "out=c", *words)
    assert done.code == 2
    assert done.err.startswith(f"error: {sentence}"), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "c").exists()


def test_dry_run_starts_nothing(cli, tmp_path):
    done = cli("compare", *EXACT, "samplers=[ddim,'ancestral variance=learned']", "dry_run=true")
    assert done.code == 0
    assert "1 of 2 samplers at NFE [5, 10, 20, 50]" in done.out
    assert list(tmp_path.iterdir()) == []


def test_its_scale_and_noise_are_those_of_fresh_draws():
    """Pairs of samples of the law itself, each pair new: the mean within 4 standard errors, the sd within a factor 2."""
    mixture, generator = Mixture().mixture, torch.Generator().manual_seed(0)
    ruler = Ruler(mixture.sample(8000, generator)[0], 300, seed=0)
    pairs = [mixture.sample(600, generator)[0].split(300) for _ in range(60)]
    for name, measure in {
        "sliced_wasserstein": sliced_wasserstein,
        "mmd2": lambda x, y: mmd(x, y, ruler.bandwidth),
    }.items():
        fresh = torch.stack([measure(x, y) for x, y in pairs])
        sd = fresh.std().item()
        assert ruler.halves[name] == pytest.approx(fresh.mean().item(), abs=4 * sd * (1 / 16 + 1 / 60) ** 0.5)
        assert sd / 2 < ruler.noise[name] < 2 * sd
    assert ruler.as_good({}) == []


class Scale:
    """A ruler of known halves and noise."""

    halves, noise = {"sliced_wasserstein": 1.0, "mmd2": 0.0}, {"sliced_wasserstein": 0.1, "mmd2": 0.1}
    as_good = Ruler.as_good


def judged(known_to=1e-6, **measured):
    """A comparison of ODE samplers at NFE 5 by (error, sliced Wasserstein, MMD^2)."""
    found = Comparison([5], Scale.halves, Scale.noise, 10, 10, known_to=known_to)
    for name, (error, distance, mmd2) in measured.items():
        found.samplers[name] = "sde" if error is None else "ode"
        found.cells.append(Cell(name, found.samplers[name], 5, 5, 5.0, error, distance, mmd2, 1.0))
    found.judge(Scale())
    return found


def test_ties_are_said():
    a, b, c, d = (0.1, 1.05, 0), (0.104, 1.19, 0), (0.2, 1.21, 0), (None, 0.9, 0)
    found = judged(a=a, b=b, c=c, d=d)
    # as two halves of the data, 1 + 2 * 0.1, and so no worse than d
    assert found.best[5] == {
        "use": "a", "error": ["a", "b"], "distance": ["d", "a", "b"],
        "sliced_wasserstein": ["d", "a", "b"], "mmd2": ["a", "b", "c", "d"],
    }  # fmt: skip
    assert (
        "use a: least error a (1.00e-01; alike: b); least distance d (0.9000, as two halves of the data; not told"
        in text(found)
    )
    # one distance is enough to tell them apart
    assert judged(a=(0.1, 1.05, 0.3), d=d).best[5]["distance"] == ["d"]
    assert judged(a=(0.1, 1.05, 0.3), d=d).best[5]["use"] == "d"
    # far from the data, two of the noise beyond the best
    assert judged(a=(0.1, 3.0, 0), b=(0.2, 2.9, 0), c=(0.3, 2.79, 0)).best[5]["distance"] == ["c", "b"]


def test_no_error_is_given_below_what_is_known():
    found = judged(known_to=1e-3, a=(1e-4, 1, 0), b=(2.9e-3, 1, 0), c=(3.1e-3, 1, 0))
    assert found.best[5]["error"] == ["a", "b"]
    assert "below 3.0e-03, which is all that is known; alike: b" in text(found)
    assert text(found).count("<3.00e-03*") == 2
