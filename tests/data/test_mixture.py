import numpy as np
import pytest
import torch

from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture, exact
from diffcli.data.mixture_file import load_mixture
from diffcli.diffusion.exact import GaussianMixture
from diffcli.errors import UsageError

NAMES = ["four", "two", "grid", "ring", "line", "gaussian", "sixteen"]
GOOD = dict(
    weights=np.array([0.25, 0.75]),
    means=np.array([[0.0, 1.0], [2.0, 3.0]]),
    covs=np.array([[[1.0, 0.2], [0.2, 0.5]], [[0.3, 0.0], [0.0, 0.4]]]),
)


def moments(mixture: GaussianMixture):
    w, m = mixture.weights, mixture.means
    mean = w @ m
    return mean, torch.einsum("k,kij->ij", w, mixture.covs) + torch.einsum("k,ki,kj->ij", w, m, m) - mean.outer(mean)


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_moments_and_weights_of_the_law(name):
    data = Mixture(name, n=20000)
    items = data.split("train")
    mean, cov = moments(data.mixture)
    sd = cov.diagonal().sqrt()
    # Five standard errors; that of a covariance entry is at most sqrt(kurtosis) sd sd / sqrt(n), kurtosis < 4 here.
    assert ((items.x.mean(0) - mean).abs() < 5 * sd / 20000**0.5).all()
    assert ((items.x.T.cov().reshape(cov.shape) - cov).abs() < 10 * sd.outer(sd) / 20000**0.5).all()
    shares = torch.bincount(items.y, minlength=data.classes) / 20000
    assert (shares - data.mixture.weights).abs().max() < 5 * 0.5 / 20000**0.5


@pytest.mark.parametrize("name", NAMES)
def test_labels_name_the_component_that_was_drawn_from(name):
    data = Mixture(name, n=5000)
    items = data.split("train")
    for k in range(data.classes):
        own = items.x[items.y == k]
        sd = data.mixture.covs[k].diagonal().sqrt()
        assert ((own.mean(0) - data.mixture.means[k]).abs() < 5 * sd / len(own) ** 0.5).all()


def test_splits_are_independent_draws():
    data = Mixture(n=2000)
    train, test = data.split("train").x, data.split("test").x
    correlation = np.corrcoef(train[:, 0], test[:, 0])[0, 1]
    assert abs(correlation) < 5 / 2000**0.5


def test_the_default_is_far_from_a_standard_normal():
    mean, cov = moments(Mixture().mixture)
    assert mean.norm() > 0.1 and (cov - torch.eye(2)).norm() > 0.5


def test_file_replaces_name_and_gives_the_same_law(tmp_path):
    np.savez(tmp_path / "mix.npz", **GOOD)
    data = Mixture(file=str(tmp_path / "mix.npz"), n=10)
    assert data.classes == 2 and data.shape == (2,)
    for name, array in GOOD.items():
        np.testing.assert_array_equal(getattr(data.mixture, name).numpy(), array)


def test_a_missing_file_is_met_when_loading_only(tmp_path):
    data = Mixture(file=str(tmp_path / "none.npz"))
    with pytest.raises(UsageError, match="there is no mixture file .*none.npz"):
        data.split("train")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"covs": None}, "has no array 'covs'"),
        ({"covs": np.ones((2, 3, 3))}, r"means \(2, 2\), covs \(2, 3, 3\), which are not"),
        ({"means": np.ones(2)}, r"means \(2,\)"),
        ({"weights": np.ones(3) / 3}, r"weights \(3,\)"),
        ({"weights": np.array([1.25, -0.25])}, "weight 1 is -0.25, not positive"),
        ({"weights": np.array([0.25, 0.7500015])}, "the weights sum to 1.0000015, not 1"),
        ({"weights": np.array(["a", "b"])}, "weights are not all finite real numbers"),
        ({"means": np.array([[0.0, np.nan], [2.0, 3.0]])}, "means are not all finite real numbers"),
        ({"covs": np.array([np.eye(2), [[1.0, 0.1], [0.2, 1.0]]])}, "covariance of component 1 is not symmetric"),
        ({"covs": np.array([[[1.0, 2.0], [2.0, 1.0]], np.eye(2)])}, "component 0 is not positive definite"),
        ({"covs": np.array([np.eye(2), np.zeros((2, 2))])}, "component 1 is not positive definite"),
    ],
)
def test_an_unfit_file_is_refused_by_a_sentence(tmp_path, change, sentence):
    np.savez(tmp_path / "mix.npz", **{k: v for k, v in {**GOOD, **change}.items() if v is not None})
    with pytest.raises(UsageError, match=sentence):
        load_mixture(None, str(tmp_path / "mix.npz"))


def test_weights_within_the_tolerance_are_normalised(tmp_path):
    np.savez(tmp_path / "mix.npz", **{**GOOD, "weights": np.array([0.25, 0.7500005])})
    assert load_mixture(None, str(tmp_path / "mix.npz")).weights.sum().item() == pytest.approx(1, abs=1e-15)


def test_files_that_are_no_archives_of_numbers_are_refused(tmp_path):
    file = tmp_path / "mix.npz"
    file.write_bytes(b"not a zip file")
    with pytest.raises(UsageError, match="is not a readable .npz archive"):
        load_mixture(None, str(file))
    np.savez(file, **{**GOOD, "covs": np.array([{"a": 1}])})
    with pytest.raises(UsageError, match="is not a readable .npz archive"):
        load_mixture(None, str(file))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UsageError, match="is not a readable .npz archive"):
        load_mixture(None, str(file))
    np.save(tmp_path / "mix.npy", np.ones(3))
    with pytest.raises(UsageError, match="is one array, not an .npz archive"):
        load_mixture(None, str(tmp_path / "mix.npy"))


def test_an_unknown_name_is_refused_at_once():
    with pytest.raises(UsageError, match="no mixture 'five'"):
        Mixture("five")
    with pytest.raises(UsageError, match="needs a name or a file"):
        load_mixture(None, None)


def test_exact_takes_the_file_then_the_data(tmp_path):
    from diffcli.diffusion.schedule import Linear
    from diffcli.diffusion.sde import VP

    sde = VP(Linear())
    np.savez(tmp_path / "mix.npz", **GOOD)
    data = Mixture("two")
    assert torch.equal(exact(sde, data=data).mixture.means, data.mixture.means)
    assert torch.equal(exact(sde, str(tmp_path / "mix.npz"), data).mixture.means, torch.tensor(GOOD["means"]))
    for other in (None, Digits()):
        with pytest.raises(UsageError, match="network=exact needs data=mixture or network.file=mix.npz"):
            exact(sde, data=other)
