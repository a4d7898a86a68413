"""diffcli nll: the exact density through the whole command, its units, and its errors."""

import csv
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student

from diffcli.commands import nll_report
from diffcli.commands.model import Model
from diffcli.commands.nll_measure import measure
from diffcli.commands.tally import Tally
from diffcli.data.base import TensorItems
from diffcli.data.digits import Digits
from diffcli.data.transform import Levels
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.likelihood import Likelihood
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP


def read(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["index", "log_prob", "std_err", "low", "high"]
    assert [int(r["index"]) for r in rows] == list(range(len(rows)))
    return np.array([float(r["log_prob"]) for r in rows]), [r["std_err"] for r in rows]


@pytest.fixture
def mixture(tmp_path):
    """mix.npz and x.npy of a 3-component mixture, and the density of each item by scipy."""
    rng = np.random.default_rng(1)
    w, m = np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 2)) * 1.5
    a = rng.normal(size=(3, 2, 2)) * 0.5
    c = a @ a.transpose(0, 2, 1) + 0.1 * np.eye(2)
    x = np.stack([rng.multivariate_normal(m[k], c[k]) for k in rng.choice(3, 70, p=w)])
    np.savez(tmp_path / "mix.npz", weights=w, means=m, covs=c)
    np.save(tmp_path / "x.npy", x)
    return np.log(sum(w[k] * multivariate_normal(m[k], c[k]).pdf(x) for k in range(3)))


EXACT = ("nll", "network=exact", "network.file=mix.npz", "data=array", "data.file=x.npy", "out=l")


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_exact_score_gives_the_exact_density(cli, tmp_path, mixture, sde):
    """All items, in file order; `diffcli likelihood` is the same command."""
    done = cli("likelihood", *EXACT[1:], f"sde={sde}", "likelihood.divergence=exact")
    assert done.code == 0, done.err
    log_prob, std_err = read(tmp_path / "l/nll.csv")
    assert len(log_prob) == 70
    assert abs((log_prob - mixture).mean()) / 2 < 1e-3
    assert np.abs(log_prob - mixture).max() < 0.2
    assert set(std_err) == {"0.0"}
    results = json.loads((tmp_path / "l/run.json").read_text())["results"]
    assert results["log_prob_mean"] == pytest.approx(log_prob.mean())
    assert results["log_prob_standard_error"] == pytest.approx(log_prob.std(ddof=1) / math.sqrt(70))
    assert f"{log_prob.mean():.4f}" in done.out


def test_hutchinson_is_right_within_its_own_error(cli, tmp_path, mixture):
    """Beside the exact divergence: what solver, prior and t_min leave is no smaller than 16 probes' error."""
    assert cli(*EXACT, "likelihood.probes=16").code == 0
    assert cli(*EXACT[:-1], "likelihood.divergence=exact", "out=e").code == 0
    (log_prob, std_err), (exact, _) = (read(tmp_path / name / "nll.csv") for name in ("l", "e"))
    z = (log_prob - exact) / np.array([float(s) for s in std_err])
    assert abs(z.mean()) < 4 / math.sqrt(70)
    assert 0.7 < z.std() < 1.5


def test_items_do_not_depend_on_batches(cli, tmp_path, mixture):
    for name, batch_size in (("a", 64), ("b", 16)):
        assert cli(*EXACT[:-1], f"out={name}", f"batch_size={batch_size}", "likelihood.probes=2").code == 0
    assert np.array_equal(read(tmp_path / "a/nll.csv")[0], read(tmp_path / "b/nll.csv")[0])


def test_one_probe_has_no_error_and_says_so(cli, tmp_path, mixture):
    done = cli(*EXACT, "likelihood.probes=1", "n=16", "likelihood.solver=rk4")
    assert done.code == 0
    assert set(read(tmp_path / "l/nll.csv")[1]) == {""}
    assert "one probe" in done.out


def test_bits_per_dim_go_through_the_transform(cli, tmp_path):
    """A Gaussian model of the digits: bits/dim equal the density of the dequantised level values, computed by hand."""
    digits = Digits().split("test").x.double().flatten(1)
    y = 2 * (digits + 0.5) / 17 - 1
    mean, cov = y.mean(0), torch.cov(y.T) + 0.05 * torch.eye(64)
    np.savez(tmp_path / "g.npz", weights=[1.0], means=mean[None].numpy().reshape(1, 64), covs=cov[None].numpy())
    np.save(tmp_path / "y.npy", y[:32].numpy())
    done = cli(
        "nll", "network=exact", "network.file=g.npz", "data=array", "data.file=y.npy", "likelihood.divergence=exact", "out=l"
    )  # fmt: skip
    assert done.code == 0, done.err
    truth = GaussianMixture(torch.ones(1), mean[None], cov[None]).log_prob(y[:32]).numpy()
    found = read(tmp_path / "l/nll.csv")[0]
    assert abs((found - truth).mean()) / 64 < 1e-3


def test_levels_cost_their_log_jacobian(cli, tmp_path):
    """The same trained model in source units: log p differs from model space by d log(2/17), bits/dim follow from it."""
    tiny = (
        "network.channels=8",
        "network.multipliers=[1]",
        "network.attention=[]",
        "preview.every=0",
        "trainer.max_steps=3",
    )
    assert cli("train", *tiny, "out=t").code == 0
    asked = ("ckpt=t/checkpoints/last.ckpt", "n=16", "likelihood.solver=rk4", "likelihood.steps=4", "dequantize=none")
    done = cli("nll", *asked, "out=l")
    assert done.code == 0, done.err
    from diffcli.checkpoint import load_denoiser
    from diffcli.randomness import ItemNoise

    x = Digits().split("test").x[:16].double()
    denoiser = load_denoiser(tmp_path / "t/checkpoints/last.ckpt")
    likelihood = Likelihood(solver="rk4", steps=4)
    model_space = likelihood(
        denoiser, (2 * (x + 0.5) / 17 - 1).float(), ItemNoise(0, range(16), (1, 8, 8))
    ).log_prob.numpy()
    log_prob = read(tmp_path / "l/nll.csv")[0]
    assert log_prob == pytest.approx(model_space + 64 * math.log(2 / 17), rel=1e-5)
    results = json.loads((tmp_path / "l/run.json").read_text())["results"]
    assert results["bits_per_dim"] == pytest.approx(-log_prob.mean() / (64 * math.log(2)))
    assert (tmp_path / "l/grid.png").exists()


RK4 = ("likelihood.solver=rk4", "likelihood.steps=8")


def table(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {k: np.array([float(r[k] or "nan") for r in rows]) for k in rows[0]}


def results_of(path):
    return json.loads((path / "run.json").read_text())["results"]


def test_intervals_are_students(cli, tmp_path, mixture):
    """An item's by probes - 1 degrees; the mean's by the degrees of all probes together."""
    assert cli(*EXACT, "likelihood.probes=4", *RK4).code == 0
    found, results = table(tmp_path / "l/nll.csv"), results_of(tmp_path / "l")
    half = student.ppf(0.975, 3) * found["std_err"]
    assert np.allclose(found["high"] - found["log_prob"], half) and np.allclose(found["log_prob"] - found["low"], half)
    error = np.sqrt((found["std_err"] ** 2).sum()) / 70
    assert results["divergence_error_of_mean"] == pytest.approx(error)
    ratio = results["divergence_half_interval_of_mean"] / error
    assert student.ppf(0.975, 70 * 3) < ratio < student.ppf(0.975, 3)
    variances = found["std_err"] ** 2
    assert ratio == pytest.approx(student.ppf(0.975, variances.sum() ** 2 / (variances**2 / 3).sum()))
    assert results["protocol"]["likelihood"]["probes"] == 4


def test_sums_are_those_of_the_whole():
    x = np.random.default_rng(0).normal(1e6, 1, size=(1000, 3))
    tally = Tally()
    for part in np.split(x, [1, 40, 41, 900]):
        tally.add(part)
    assert np.allclose(tally.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(tally.standard_error, x.std(0, ddof=1) / math.sqrt(1000), rtol=1e-9)
    assert (tally.n, tally.min, tally.max) == (1000, x.min(), x.max())


class Counted:
    """Data of one value an item on N levels, in model space -1 ... 1."""

    def __init__(self, levels):
        self.transform, self.units = Levels(levels), "levels"


def on_levels(dequantize, samples, levels=5, copies=60):
    """The batches that `measure` gives for every level of one value, `copies` times each, and the exact probabilities."""
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-0.5], [0.4]]), torch.tensor([[[0.02]], [[0.1]]])
    )
    config = dict(dtype="float64", batch_size=250, seed=1, dequantize=dequantize, dequantize_samples=samples)
    model = Model(Exact(VP(Linear()), mixture), Counted(levels), (1,), "exact", config)
    items = TensorItems(torch.arange(levels).repeat(copies)[:, None].to(torch.uint8))
    ode = Likelihood(divergence="exact", solver="rk4", steps=16)
    found = measure(model, items, len(items), ode, None, torch.device("cpu"), lambda *batch: {})
    columns = [batch.columns for batch in found]
    edges = 2 * np.arange(levels + 1) / levels - 1
    mass = sum(w * np.diff(norm.cdf(edges, m, s)) for w, m, s in ((0.3, -0.5, 0.02**0.5), (0.7, 0.4, 0.1**0.5)))
    return {k: np.concatenate([c[k] for c in columns]).reshape(copies, levels) for k in columns[0]}, np.log(mass)


@pytest.mark.heavy
def test_importance_tends_to_the_probability_of_a_level():
    """One place is dequantize=uniform; in the mean it rises with K, never above log P(k), and its mean density is P(k)."""
    uniform, truth = on_levels("uniform", 1)
    means = []
    for k in (1, 2, 10):
        found, _ = on_levels("importance", k)
        if k == 1:
            assert np.array_equal(found["log_prob"], uniform["log_prob"])
        else:
            assert (found["effective_samples"] <= k + 1e-9).all() and (found["effective_samples"] >= 1).all()
        assert np.array_equal(found["nfe"], k * uniform["nfe"])
        means.append(found["log_prob"].mean(0))
        p = np.exp(found["log_prob"])
        z = (p.mean(0) - np.exp(truth)) / (p.std(0) / math.sqrt(len(p)))
        assert np.abs(z).max() < 4
    assert all(b.sum() > a.sum() for a, b in itertools.pairwise(means))
    assert np.abs(means[-1] - truth).max() < 0.25 * np.abs(means[0] - truth).max()


def test_importance_adds_the_errors_of_its_places(cli, tmp_path):
    """Weighted by p_k / sum p; combined by hand from single places."""
    from diffcli.commands.nll_measure import combined

    def one(log_p, std_err):
        b = [torch.tensor(v, dtype=torch.float64) for v in (log_p, std_err)]
        return SimpleNamespace(
            log_prob=b[0],
            std_err=b[1],
            nfe=torch.tensor([3, 4]),
            solver_err=b[1],
            truncation=float("nan"),
            path_gap=0.0,
        )

    found = combined([one([0.0, 1.0], [0.1, 0.2]), one([1.0, 1.0], [0.3, 0.4])], 2.0)
    w = 1 / (1 + math.e)
    assert found["std_err"].tolist() == pytest.approx([w * 0.1 + (1 - w) * 0.3, 0.3])
    assert found["log_prob"].tolist() == pytest.approx([2 + math.log((1 + math.e) / 2), 3])
    assert found["nfe"].tolist() == [6, 8]
    assert found["effective_samples"].tolist() == pytest.approx([1 / (w**2 + (1 - w) ** 2), 2])
    assert found["truncation"].isnan().all() and (found["path_gap"] == 0).all()


def test_the_picture_keeps_its_candidates_alone():
    """Those of a whole sort, with ties in file order, whatever the batches; each item once where there are few."""
    for n in (5, 40, 64, 300):
        values = np.random.default_rng(n).integers(0, 40, n) / 7.0
        report = nll_report.Report.__new__(nll_report.Report)
        report.most, report.least = [], []
        for i, value in enumerate(values):
            report._keep(value, i)
        order = np.argsort(-values, kind="stable")
        chosen = np.concatenate([order[:32], order[max(32, n - 32) :]])
        assert report.extremes() == chosen.tolist()
        assert len(report.most) <= 32 and len(report.least) <= 32


def test_the_bound_stands_beside_the_likelihood(cli, tmp_path, mixture):
    """Exact score: equal within what the noises leave, as results, table and screen say; a chain has its own bound."""
    args = (*EXACT, "n=48", "likelihood.divergence=exact", "also=elbo", "dtype=float64")
    done = cli(*args)
    assert done.code == 0, done.err
    found, results = table(tmp_path / "l/nll.csv"), results_of(tmp_path / "l")
    elbo = results["elbo"]
    z = (found["elbo"] + mixture[:48]) / found["elbo_std_err"]
    assert abs(z.mean()) < 4 / math.sqrt(48) and 0.7 < z.std() < 1.4
    assert elbo["nats"] == pytest.approx(found["elbo"].mean())
    assert elbo["monte_carlo_error"] == pytest.approx(math.sqrt((found["elbo_std_err"] ** 2).sum()) / 48)
    assert elbo["nats"] == pytest.approx(elbo["prior"] + elbo["steps"] + elbo["reconstruction"])
    strata = table(tmp_path / "l/bound.csv")
    assert len(strata["sum"]) == 32
    assert strata["sum"].sum() == pytest.approx(elbo["steps"])
    assert np.allclose(strata["mean"] * strata["measure"], strata["sum"])
    assert f"{elbo['nats']:.4f} ±" in done.out and "continuous" in done.out
    assert set(found["elbo_nfe"]) == {68}
    assert (tmp_path / "l/bound.png").exists()
    done = cli(*args, *RK4, "schedule=ddpm", "schedule.T=50", "elbo.times=8", "overwrite=true")
    assert done.code == 0, done.err
    chain = results_of(tmp_path / "l")
    assert chain["protocol"]["elbo"] == dict(
        bound="DiscreteBound", times=8, decoder="density", T=None, variance="small"
    )
    assert chain["elbo"]["nats"] > -mixture[:48].mean()
    assert "L_0" in done.out and len(table(tmp_path / "l/bound.csv")["sum"]) == 4


@pytest.mark.heavy
def test_the_bound_of_levels(cli, tmp_path):
    """A level's probability or its dequantised density, in bits/dim either way; of centres where nothing is dequantised."""
    tiny = ("network.channels=8", "network.multipliers=[1]", "network.attention=[]", "preview.every=0")
    assert cli("train", *tiny, "trainer.max_steps=3", "out=t").code == 0
    args = ("nll", "ckpt=t/checkpoints/last.ckpt", "n=3", "also=elbo", "elbo.times=4", "likelihood.probes=2", *RK4)
    for more, decoder in ((), "density"), (("dequantize=none",), "bin"), (("elbo.bound=discrete", "elbo.T=9"), "bin"):
        done = cli(*args, *more, "out=l", "overwrite=true")
        assert done.code == 0, done.err
        results, found = results_of(tmp_path / "l"), table(tmp_path / "l/nll.csv")
        assert results["protocol"]["elbo"]["decoder"] == decoder
        assert results["elbo"]["bits_per_dim"] == pytest.approx(results["elbo"]["nats"] / (64 * math.log(2)))
        assert np.allclose(found["bits_per_dim"], -found["log_prob"] / (64 * math.log(2)))
        assert found["elbo_prior"] + found["elbo_steps"] + found["elbo_reconstruction"] == pytest.approx(found["elbo"])
        assert (found["elbo"] > 0).all()
        assert ("bounds no probability" in done.out) is ("dequantize=none" in more)
        assert f"-ELBO     {results['elbo']['bits_per_dim']:.4f}" in done.out


def test_a_failure_leaves_what_was_measured(cli, tmp_path):
    """The rows of the batches before it are in the table."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    x[35] = 1e200
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "m.npz", weights=[1.0], means=np.zeros((1, 2)), covs=np.eye(2)[None])
    args = ("nll", "network=exact", "network.file=m.npz", "data=array", "data.file=x.npy", "batch_size=16", "out=l")
    done = cli(*args, *RK4)
    assert (done.code, done.err.count("error: ")) == (4, 1), done.err
    assert len(table(tmp_path / "l/nll.csv")["log_prob"]) == 32
    assert json.loads((tmp_path / "l/run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(("cut", "code"), [("01", 2), ("20", 1)])
def test_a_picture_that_cannot_be_decoded(cut, code, cli, tmp_path):
    """In the first batch nothing was started, exit 2; after it the run has failed, exit 1, and its rows are kept."""
    (tmp_path / "p").mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"p/{i:02d}.png")
    data = ("data=image_folder", "data.root=p", "data.size=4", "data.val_fraction=0.2")
    train = ("network=mlp", "network.width=8", "trainer.max_steps=1", "batch_size=2", "preview.every=0", "device=cpu")
    done = cli("train", *data, *train, "out=t")
    assert done.code == 0, done.err
    picture = tmp_path / f"p/{cut}.png"
    picture.write_bytes(picture.read_bytes()[:1000])
    done = cli("nll", "ckpt=t/checkpoints/last.ckpt", "split=all", "batch_size=16", "out=l", *RK4)
    assert (done.code, done.err.count("error: ")) == (code, 1), done.err
    assert f"{cut}.png cannot be decoded" in done.err and "try: remove or replace it" in done.err
    if code == 2:
        assert not (tmp_path / "l").exists()
    else:
        assert len(table(tmp_path / "l/nll.csv")["log_prob"]) == 16
        assert json.loads((tmp_path / "l/run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("also=vlb",), "also"),
        (("elbo.times=64",), "was not asked for"),
        (("also=elbo", "elbo.times=7"), "even"),
        (("also=elbo", "elbo.times=all"), "discrete bound"),
        (("also=elbo", "elbo.times=some"), "elbo.times"),
        (("also=elbo", "elbo.T=50"), "elbo.bound=discrete"),
        (("also=elbo", "elbo.bound=discrete", "elbo.variance=learned"), "prediction.outputs=2"),
        (("also=elbo", "elbo.decoder=bin"), "no levels"),
        (("also=elbo", "elbo.bound=both"), "elbo.bound"),
        (("also=elbo", "likelihood=path", "likelihood.grid=0"), "up to a constant"),
        (("dequantize=importance",), "no levels"),
        (("dequantize_samples=4",), "left out"),
        (("likelihood.divergence=exact", "likelihood.probes=4"), "has no probes"),
        (("likelihood.divergence=exact", "likelihood.noise=gaussian"), "likelihood.divergence=hutchinson"),
        (("likelihood.solver=rk45", "likelihood.steps=64"), "likelihood.solver=exponential|rk4|heun"),
        (("likelihood.solver=rk4", "likelihood.tol=1e-3"), "likelihood.solver=exponential|rk45"),
        (("likelihood.solver=heun", "likelihood.tol=1e-3"), "has no tol"),
        (("dequantize=variational",), "dequantize"),
    ],
)
def test_what_does_not_fit_is_refused(cli, tmp_path, words, sentence):
    done = cli("nll", "network=exact", "data=mixture", "out=l", *words)
    assert done.code == 2, done.err
    assert sentence in done.err and done.err.count("\n") <= 2
    assert not (tmp_path / "l").exists()


def test_an_unnormalised_density_has_no_bits(cli, tmp_path, mixture):
    done = cli(*EXACT, "likelihood=path", "likelihood.grid=0", "n=16")
    assert done.code == 0, done.err
    results = results_of(tmp_path / "l")
    assert "up to a constant" in done.out and "bits/dim" not in done.out
    assert "nats_per_dim" not in results and results["normalised"] is False
