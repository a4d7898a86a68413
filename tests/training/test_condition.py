"""What a network is told while training: how often nothing, and that the truth is what it then learns."""

import math

import pytest
import torch

from diffcli.data.mixture import Mixture
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.loss import DSM, EDM, ESM, ISM, SSM, SSMVR, VLB, DDPMSimple, Flow, TrainingSet
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers.dpm import DPM2
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP, OneLevel
from diffcli.networks.mlp import MLP
from diffcli.randomness import Draw
from diffcli.sampling import Conditions, draw_samples
from diffcli.training.condition import Condition
from diffcli.training.coupling import Independent, OptimalTransport
from diffcli.training.module import Training

STEPS = 250


def apart(labels=2):
    """Components that overlap where there is noise."""
    means = torch.tensor([[-0.8, 0.3], [0.9, -0.2], [0.2, 1.1]], dtype=torch.float64)[:labels]
    covs = torch.stack([torch.diag(torch.tensor([0.1 + 0.2 * k, 0.4 - 0.1 * k])) for k in range(labels)]).double()
    return GaussianMixture(torch.ones(labels) / labels, means, covs)


def items(mixture, n, seed=0):
    return mixture.sample(n, torch.Generator().manual_seed(seed))


def told(name, drop):
    condition = Condition.__new__(Condition)
    condition.name, condition.drop, condition.transform = name, drop, None
    return condition


@pytest.mark.parametrize("name", ["label", "vector"])
def test_a_share_is_told_nothing_and_the_rest_the_truth(name):
    n, p = 20_000, 0.3
    y = torch.arange(n) % 7 if name == "label" else torch.randn(n, 3)
    found = told(name, p)(y, torch.zeros(n, 2), Draw(0, 5))[name]

    def lost(found):
        return found == -1 if name == "label" else found.isnan().all(1)

    none = lost(found)
    assert abs(none.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert torch.equal(found[~none], y[~none])
    assert name == "label" or not found[~none].isnan().any()
    # a function of (seed, step, rank), and none without a draw
    again, other, rank = (told(name, p)(y, torch.zeros(n, 2), d)[name] for d in (Draw(0, 5), Draw(0, 6), Draw(0, 5, 1)))
    torch.testing.assert_close(again, found, rtol=0, atol=0, equal_nan=True)
    for another in (other, rank):
        assert torch.equal(another[~lost(another)], y[~lost(another)])
        share = (lost(another) == none).double().mean()
        assert abs(share - ((1 - p) ** 2 + p**2)) < 0.03
    assert torch.equal(told(name, p)(y, torch.zeros(n, 2))[name], y)
    assert torch.equal(told(name, 0.0)(y, torch.zeros(n, 2), Draw(0, 5))[name], y)


def test_validation_is_told_all_of_it():
    class Asked(torch.nn.Module):
        def forward(self, denoiser, x0, draw, label):
            return label.double()

    step = Training.__new__(Training)
    torch.nn.Module.__init__(step)
    step.denoiser, step.loss, step.condition = torch.nn.Identity(), Asked(), told("label", 0.5)
    step.encoded = lambda x, draw: x
    for training in (True, False):
        step.train(training)
        losses, _ = step.losses((torch.zeros(200, 1), torch.ones(200, dtype=torch.int64)), Draw(0, 0))
        assert (losses < 0).any() == training  # none is -1


def test_each_item_of_a_table_is_given_to_so_many_samples():
    given = Conditions(2, label=torch.tensor([5, 6, 7])) | Conditions(vector=torch.tensor([[1.0], [2.0]]))
    found = given(range(1, 8), torch.float64, "cpu")
    assert found["label"].tolist() == [5, 6, 6, 7, 7, 5, 5]
    assert found["vector"][:, 0].tolist() == [2, 1, 2, 1, 2, 1, 2]


def test_transport_stays_within_a_label_so_that_the_noise_does_not_tell_it():
    """Across labels, noise to the left would belong to items on the left: its mean given the label would be far from 0."""
    label = torch.arange(400) % 3 - 1
    x0 = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) + 4 * label[:, None]
    eps = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    same, moved = OptimalTransport()(x0, eps, None, label)
    assert torch.equal(same, x0)
    for k in (-1, 0, 1):
        rows = label == k
        assert sorted(moved[rows].flatten().tolist()) == sorted(eps[rows].flatten().tolist())
        _, alone = OptimalTransport()(x0[rows], eps[rows], None)
        assert torch.equal(moved[rows], alone)
    _, across = OptimalTransport()(x0, eps, None)
    assert across[label == 1].mean() > 0.5
    assert moved[label == 1].mean().abs() < 4 / math.sqrt(2 * 133)


LOSSES = {
    "dsm": DSM,
    "ism": ISM,
    "ssm": lambda: SSM(probes=4),
    "ssm_vr": lambda: SSMVR(probes=4),
    "vlb": lambda: VLB(T=50),
    "ddpm_simple": lambda: DDPMSimple(T=50),
    "edm": lambda: EDM(sigma_data=1.0),
    "flow": lambda: Flow(Independent()),
    "esm": lambda: ESM("known"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_prefers_the_truth_to_nothing_and_nothing_to_a_lie(name):
    mixture = apart()
    x0, label = items(mixture, 1500)
    sde, loss = VP(Linear()), LOSSES[name]()
    exact = Exact(sde, mixture)
    loss.setup(exact, TrainingSet(lambda: x0, (2,), None, mixture, "label"))

    def value(k):
        if name == "esm":  # whose target is that of the label itself: here x is asked for under another model's label
            shifted = Relabelled(exact, k)
            return loss(shifted, x0, Draw(0, 0), label=label).mean()
        return loss(exact, x0, Draw(0, 0), label=k).mean()

    truth, nothing, lie = (value(k) for k in (label, torch.full_like(label, -1), 1 - label))
    assert truth < nothing < lie
    assert name != "esm" or truth < 1e-12


class Relabelled(Exact):
    """The exact denoiser of other labels than those that it is told."""

    def __init__(self, exact, label):
        super().__init__(exact.sde, exact.mixture)
        self.given = label

    def parts(self, xt, t, label):
        return super().parts(xt, t, label=self.given)

    def score(self, xt, t, label):
        return super().score(xt, t, label=self.given)


def test_known_scores_are_those_of_what_is_told():
    """Explicit matching of the exact denoiser leaves nothing, of labels and of none alike."""
    mixture = apart()
    x0, label = items(mixture, 300)
    mixed = torch.where(torch.arange(300) % 3 == 0, -1, label)
    exact, loss = Exact(VP(Linear()), mixture), ESM("known")
    loss.setup(exact, TrainingSet(lambda: x0, (2,), None, mixture, "label"))
    assert loss(exact, x0, Draw(0, 0), label=mixed).max() < 1e-12


def test_what_has_no_conditional_score_is_refused():
    x0, _ = items(apart(), 50)
    for condition, mixture, loss in (
        ("label", None, ESM("kde")),
        ("vector", apart(), ESM("known")),
        ("image", apart(), ESM("kde")),
    ):
        with pytest.raises(ValueError, match="loss=dsm"):
            loss.setup(Exact(VP(Linear()), apart()), TrainingSet(lambda: x0, (2,), None, mixture, condition))


def test_a_network_learns_each_components_score_and_the_mixtures_under_none():
    torch.manual_seed(0)
    mixture, sde, condition = apart(), OneLevel(1.0, 0.5), told("label", 0.3)
    model, exact, loss = Eps(sde, MLP([2], width=32, blocks=1, classes=2)), Exact(sde, mixture), DSM()
    loss.setup(model, TrainingSet(lambda: items(mixture, 10)[0], (2,)))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS)
        x0, y = items(mixture, 512, step + 1)
        x0, draw = x0.float(), Draw(0, step)
        value = loss(model, x0, draw, **condition(y, x0, draw)).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    x0, y = items(mixture, 2000, 12345)
    t, none = torch.tensor(sde.t_min, dtype=torch.float64), torch.full_like(y, -1)
    x = sde.perturb(x0, t, Draw(1, 0).normal("eps", x0.shape, x0.dtype))
    with torch.no_grad():
        for label, others in ((y, [none, 1 - y]), (none, [y])):
            found = model.eps(x, t, label=label)
            error = (found - exact.eps(x, t, label=label)).square().mean()
            assert error < 0.01
            assert all((found - exact.eps(x, t, label=other)).square().mean() > 5 * error for other in others)


def draw(n, given, batch_size=64, first=0):
    sde = VP(Linear())
    times = sde.time(torch.linspace(*sde.lam(torch.tensor([sde.t_max, sde.t_min])).tolist(), 21, dtype=torch.float64))
    times[0], times[-1] = sde.t_max, sde.t_min
    exact = Exact(sde, apart(3))
    found = draw_samples(exact, DPM2(), times, (2,), n, 0, batch_size, first=first, dtype=torch.float64, given=given)
    return torch.cat([part.x for part in found])


def test_what_a_sample_is_given_depends_on_its_number_alone():
    given = Conditions(label=torch.tensor([2, -1, 0, 1, 1]))
    whole = draw(100, given)
    assert torch.allclose(draw(100, given, batch_size=16), whole, atol=1e-9)
    assert torch.allclose(draw(37, given, first=41), whole[41:78], atol=1e-9)
    assert torch.allclose(draw(100, Conditions(label=torch.tensor([2])))[::5], whole[::5], atol=1e-9)
    assert torch.allclose(draw(100, None)[1::5], whole[1::5], atol=1e-9)


def test_samples_of_a_label_follow_its_component():
    n, mixture = 3000, apart(3)
    x = draw(3 * n, Conditions(label=torch.arange(3)), batch_size=9000)
    for k in range(3):
        mine, cov = x[k::3], mixture.covs[k]
        assert ((mine.mean(0) - mixture.means[k]).abs() < 4 * (cov.diagonal() / n).sqrt() + 0.01).all()
        assert torch.allclose(mine.T.cov(), cov, atol=4 * cov.max().item() * math.sqrt(2 / n) + 0.01)


def test_labels_of_the_data_reach_the_network_in_order():
    data = Mixture("four", n=50)
    condition = Condition("label", 0.1, data)
    split = data.split("train")
    assert condition.items(split) is split
    x, y = split.__getitems__([3, 1, 4])
    assert torch.equal(condition(y, x)["label"], split.y[[3, 1, 4]])
