"""diffcli nll: the exact density through the whole command, its units, and its errors."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from diffcli.data.digits import Digits
from diffcli.diffusion.exact import GaussianMixture


def read(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "log_prob", "std_err"]
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
    assert cli(*EXACT, "likelihood.probes=16").code == 0
    log_prob, std_err = read(tmp_path / "l/nll.csv")
    z = (log_prob - mixture) / np.array([float(s) for s in std_err])
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
    from diffcli.diffusion.likelihood import Likelihood
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
