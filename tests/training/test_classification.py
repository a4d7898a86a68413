"""A trained classifier is the posterior of the labels, at every noise level; its training resumes bit for bit."""

import math

import pytest
import torch

from diffcli import checkpoint
from diffcli.data.digits import Digits
from diffcli.data.mixture import Mixture
from diffcli.diffusion.classifier import Classifier, CrossEntropy
from diffcli.diffusion.exact import GaussianMixture
from diffcli.diffusion.schedule import Geometric, Linear
from diffcli.diffusion.sde import VE, VP
from diffcli.networks.classifier import ClassifierNetwork
from diffcli.randomness import Draw
from diffcli.training.classification import accuracy

NAMES = ["a", "b", "c", "d"]
MIXTURE = (
    "data=mixture", "task=classifier", "task.network.width=64", "optim.lr=4e-3", "batch_size=512",
    "trainer.max_steps=500", "ema.decay=0.98", "trainer.limit_val_batches=0",
)  # fmt: skip


class Known(torch.nn.Module):
    """The exact posterior of a mixture's components as a network: it undoes c_in and c_noise."""

    def __init__(self, sde, mixture):
        super().__init__()
        self.sde, self.mixture = sde, mixture

    def forward(self, x, c_noise):
        t = c_noise.double() / 1000
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        log_p, _ = self.mixture.components(x * (alpha**2 + sigma**2).sqrt()[:, None], alpha, sigma)
        return x, log_p


@pytest.mark.heavy
@pytest.mark.parametrize(
    "process",
    [
        pytest.param(("sde=vp",), id="vp"),
        pytest.param(("sde=ve", "schedule.sigma_max=10"), id="ve"),
    ],
)
def test_it_learns_the_posterior_at_every_level(cli, tmp_path, process):
    """Mean KL(p(k | x_t) || classifier) below 0.01 nats at each of six levels, from sure labels to unknown ones."""
    done = cli("train", *MIXTURE, *process, "out=run")
    assert done.code == 0, done.err
    classifier, mixture = checkpoint.load_classifier(tmp_path / "run/checkpoints/last.ckpt"), Mixture("four").mixture
    generator, sde = torch.Generator().manual_seed(1), classifier.sde
    x0, _ = mixture.sample(4000, generator)
    for u in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        t = torch.tensor(sde.t_min + (sde.t_max - sde.t_min) * u, dtype=torch.float64)
        xt = sde.perturb(x0, t, torch.randn(x0.shape, dtype=torch.float64, generator=generator))
        exact = torch.log_softmax(mixture.components(xt, sde.alpha(t), sde.sigma(t))[0], dim=1)
        kl = (exact.exp() * (exact - classifier.log_prob(xt, t))).sum(1).mean().item()
        uninformed = (exact.exp() * (exact - mixture.weights.log())).sum(1).mean().item()
        assert kl < 0.01, (u, kl, uninformed)
        assert uninformed > 1 or u > 0.25, (u, uninformed)  # what a classifier that knows nothing would have


def test_the_loss_is_least_at_the_posterior():
    """Its mean there is the labels' conditional entropy, at the levels that it draws; any tilt of the logits costs more."""
    mixture = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.5]], [[0.5]]])
    sde = VP(Linear())
    x0, y = mixture.sample(20_000, torch.Generator().manual_seed(0))
    known, loss = Classifier(Known(sde, mixture), [1], NAMES[:2], sde), CrossEntropy()
    tilted = Classifier(torch.nn.Module(), [1], NAMES[:2], sde)
    tilted.network.forward = lambda x, c: (x, 1.1 * known.network(x, c)[1])
    values, right = loss(known, x0, y, Draw(0, 0))
    more, same = loss(tilted, x0, y, Draw(0, 0))
    t, _ = loss.time(sde, len(x0), Draw(0, 0))
    xt = sde.perturb(x0, t, Draw(0, 0).normal("eps", x0.shape, x0.dtype))
    p = torch.softmax(mixture.components(xt, sde.alpha(t), sde.sigma(t))[0], dim=1)
    entropy = -(p * p.log()).sum(1)
    error = (values - entropy).std().item() / math.sqrt(len(x0))
    assert abs((values - entropy).mean().item()) < 4 * error
    assert more.mean() > values.mean()
    assert torch.equal(right, p.argmax(1) == y)
    assert torch.equal(same, right)


def test_every_time_sampler_estimates_the_uniform_average():
    """With 1/q of importance, and with the levels, the loss has the mean that t uniform gives it."""
    mixture = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.3]], [[0.3]]])
    sde = VP(Linear())
    known = Classifier(Known(sde, mixture), [1], NAMES[:2], sde)
    x0, y = mixture.sample(40_000, torch.Generator().manual_seed(0))
    mean, error = {}, {}
    for time in ("uniform", "levels", "importance"):
        values, _ = CrossEntropy(time=time)(known, x0, y, Draw(0, 0))
        mean[time], error[time] = values.mean().item(), values.std().item() / math.sqrt(len(values))
    for time in ("levels", "importance"):
        assert abs(mean[time] - mean["uniform"]) < 4 * math.hypot(error[time], error["uniform"]), (mean, error)


def test_its_gradient_is_the_difference_of_the_scores():
    """`grad log p(y | x_t) = grad log p(x_t | y) - grad log p(x_t)`: what guidance takes of it."""
    mixture, sde = Mixture("four").mixture, VE(Geometric(sigma_max=10.0))
    classifier = Classifier(Known(sde, mixture), [2], NAMES, sde)
    for t in torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64):
        x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        log_p = classifier.log_prob(x, t)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        for k in range(4):
            (found,) = torch.autograd.grad(log_p[:, k].sum(), x, retain_graph=True)
            own = mixture.components(x.detach(), alpha, sigma)[1][:, k]
            assert torch.allclose(found, own - mixture.score(x.detach(), alpha, sigma), atol=1e-9), (t, k)


def test_accuracy_is_counted_on_every_item_once_whatever_the_batch(monkeypatch):
    """Of the exact posterior it is the Bayes accuracy `E max_k p(k | x_t)` within its own standard error."""
    data = Mixture("two", n=1700)
    sde = VP(Linear())
    classifier = Classifier(Known(sde, data.mixture), [2], NAMES[:2], sde)
    classifier.unused = torch.nn.Parameter(torch.zeros(()))  # by which it finds the device
    for t in (None, 0.3, 0.6):
        found = accuracy(classifier, data, "test", t, seed=3)
        time = torch.tensor(sde.t_min if t is None else t, dtype=torch.float64)
        x0, _ = data.mixture.sample(20_000, torch.Generator().manual_seed(2))
        xt = sde.perturb(
            x0, time, torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        )
        p = torch.softmax(data.mixture.components(xt, sde.alpha(time), sde.sigma(time))[0], dim=1)
        assert found["items"] == 1700
        assert round(found["accuracy"] * 1700) == pytest.approx(found["accuracy"] * 1700)
        assert found["std_err"] == pytest.approx(math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 1700))
        assert abs(found["accuracy"] - p.amax(1).mean().item()) < 4 * found["std_err"] + 0.002, (t, found)
        assert abs(found["cross_entropy"] + (p * p.log()).sum(1).mean().item()) < 0.05, (t, found)
        with monkeypatch.context() as patch:
            patch.setattr("diffcli.training.classification.TEST_BATCH", 100)
            again = accuracy(classifier, data, "test", t, seed=3)
        assert again["wrong"] == found["wrong"]
        assert again["cross_entropy"] == pytest.approx(found["cross_entropy"], rel=1e-9)


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 32, 32], [1, 28, 28], [2, 5, 9], [1, 1, 1], [2], [6, 4]], ids=str)
def test_the_network_takes_any_shape(shape):
    """Features and logits of each item alone: other items of the batch change nothing, and the noise level does."""
    torch.manual_seed(0)
    network = ClassifierNetwork(shape, classes=7, features=5, channels=8, width=16).double().eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, c = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0.0, 300.0, 300.0], dtype=torch.float64)
    features, logits = network(x, c)
    assert features.shape == (3, 5)
    assert logits.shape == (3, 7)
    alone = network(x[1:2], c[1:2])
    assert torch.allclose(alone[0], features[1:2])
    assert torch.allclose(alone[1], logits[1:2])
    assert not torch.allclose(network(x[1:2], c[:1])[1], logits[1:2])
    assert torch.allclose(logits, network.logits(torch.nn.functional.silu(features)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(classes=1), "at least 2 classes, got 1"),
        (dict(features=0), "features must be at least 1, got 0"),
        (dict(multipliers=[]), r"multipliers needs one number of at least 1 a level, got \[\]"),
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (dict(width=33), "width must be even, got 33"),
    ],
)
def test_values_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassifierNetwork(**dict(shape=[2], classes=3) | settings)


def test_clean_and_noised_classifiers_say_what_they_take():
    network = ClassifierNetwork([2], 3, width=8)
    for p in network.parameters():  # a fresh one's residual branches are nothing, and with them the noise level
        torch.nn.init.normal_(p, std=0.3)
    clean, noised = Classifier(network, [2], NAMES[:3]), Classifier(network, [2], NAMES[:3], VP(Linear()))
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="takes no t"):
        clean(x, torch.tensor(0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"items of shape \(2,\), these have \(3,\)"):
        clean(torch.randn(4, 3))
    lowest = torch.tensor(noised.sde.t_min, dtype=torch.float64)
    assert torch.equal(noised(x), noised(x, lowest))
    assert not torch.equal(noised(x), noised(x, torch.tensor(0.5, dtype=torch.float64)))


TINY = (
    "task=classifier", "trainer.max_steps=6", "batch_size=100", "task.network.channels=4", "task.network.multipliers=[1,2]",
    "task.network.dropout=0.1", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1",
)  # fmt: skip


@pytest.mark.parametrize("extra", [(), ("sde=ve", "trainer.accumulate_grad_batches=2")], ids=["clean", "noised"])
def test_resume_equals_uninterrupted(cli, tmp_path, extra):
    every = ("checkpoint.every=1", "checkpoint.keep=9")
    whole = cli("train", *TINY, *extra, *every, "out=whole")
    assert whole.code == 0, whole.err
    middle = tmp_path / "whole/checkpoints/step0000002.ckpt"
    resumed = cli("train", *TINY, *extra, *every, "out=rest", f"resume={middle}")
    assert resumed.code == 0, resumed.err
    a, b = (torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "rest"))
    start = torch.load(middle, weights_only=True)
    assert a["global_step"] == b["global_step"] == 6
    for part in ("state_dict", "ema"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part]), part
        assert not all(torch.equal(a[part][k], start[part][k]) for k in a[part]), part
    assert whole.out[whole.out.index("test accuracy") :].splitlines()[0] in resumed.out


@pytest.mark.heavy
def test_digits_are_told_apart(cli, tmp_path):
    done = cli("train", "task=classifier", "trainer.max_steps=300", "out=run")
    assert done.code == 0, done.err
    found = accuracy(checkpoint.load_classifier(tmp_path / "run/checkpoints/last.ckpt"), Digits(), "test")
    assert found["items"] == 180
    assert found["accuracy"] >= 0.95
