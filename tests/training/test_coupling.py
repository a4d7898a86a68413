"""Couplings: the optimum, their marginals, and what they do to the curvature of a trained flow."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffcli import checkpoint
from diffcli.data.points import Points
from diffcli.diffusion.loss import Flow
from diffcli.diffusion.ode import DormandPrince, pf_ode
from diffcli.diffusion.prediction import Velocity
from diffcli.diffusion.schedule import Logit
from diffcli.diffusion.sde import Flow as Straight
from diffcli.metrics.ruler import Ruler
from diffcli.randomness import Draw
from diffcli.training.coupling import Independent, OptimalTransport, Reflow


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [2, 3, 5, 6])
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3, 2)], ids=str)
def test_transport_is_the_best_permutation(n, shape):
    """Against all n! of them; x0 stays as it is and the noise is only reordered."""
    x0, eps = 3 * normal(n, n, *shape) + 1, normal(n + 50, n, *shape)
    same, moved = OptimalTransport(n)(x0, eps, None)
    assert torch.equal(same, x0)
    assert sorted(moved.flatten(1).tolist()) == sorted(eps.flatten(1).tolist())

    def cost(e):
        return (x0 - e).square().sum().item()

    best = min(cost(eps[list(order)]) for order in itertools.permutations(range(n)))
    assert cost(moved) == pytest.approx(best, rel=1e-6)


def test_transport_in_one_dimension_keeps_the_order():
    x0, eps = normal(0, 200, 1), normal(1, 200, 1)
    _, moved = OptimalTransport()(x0, eps, None)
    assert torch.equal(moved[x0.flatten().argsort()], eps.sort(0).values)


def test_independent_leaves_the_pairs():
    x0, eps = normal(0, 5, 2), normal(1, 5, 2)
    assert all(map(torch.equal, Independent()(x0, eps, None), (x0, eps)))


def test_values_out_of_range_are_refused():
    for make in (lambda: OptimalTransport(1), lambda: Reflow("x", pairs=0), lambda: Reflow("x", steps=0)):
        with pytest.raises(ValueError, match="must be at least"):
            make()


# a small model of the plane, trained by hand
STEPS, BATCH, WIDTH = 500, 128, 64


class Plane(nn.Module):
    """(x, 1000 t) -> (B, 2), three hidden layers."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(4, WIDTH), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(WIDTH, WIDTH), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, 2))

    def forward(self, x, c_noise):
        angle = c_noise[:, None] / 1000 * torch.pi
        return self.layers(torch.cat([x, angle.cos(), angle.sin()], 1))


def points(seed):
    return Points("moons", 8000, seed=seed).split("train").__getitems__(range(8000))[0]


def trained(coupling, start=None):
    torch.manual_seed(0)
    model = copy.deepcopy(start).requires_grad_() if start else Velocity(Straight(Logit()), Plane())
    loss, x = Flow(coupling), points(0)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for step in range(STEPS):
        batch = x[torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))]
        optimiser.zero_grad()
        loss(model, batch, Draw(0, step)).mean().backward()
        optimiser.step()
        schedule.step()
    return model.requires_grad_(False)


def walk(model, n=2000, steps=50):
    """x at data, and the mean squared deviation of the velocity from the chord: Liu et al. 2023, eq. 6's S."""
    times = torch.linspace(model.sde.t_max, model.sde.t_min, steps + 1, dtype=torch.float64)
    x, velocities = normal(9, n, 2), []
    start = x
    for t, s in itertools.pairwise(times):  # the midpoint rule
        half = x + float(s - t) / 2 * model.velocity(x, t)
        v = model.velocity(half, (t + s) / 2)
        velocities.append(v)
        x = x + float(s - t) * v
    chord = (start - x) / (model.sde.t_max - model.sde.t_min)
    return x, (torch.stack(velocities) - chord).square().sum(-1).mean().item()


class Pool(Reflow):
    """Reflow of a model that is at hand."""

    def __init__(self, teacher):
        super().__init__("none", pairs=4000, steps=16, seed=3)
        self.teacher = teacher


@pytest.fixture(scope="module")
def flows():
    first = trained(Independent())
    return {
        "independent": first,
        "ot": trained(OptimalTransport(BATCH)),
        "reflow": trained(Pool(copy.deepcopy(first)), start=first),
    }


def test_curvature_falls(flows):
    """Transport within the batch straightens the paths, reflow more so."""
    curvature = {name: walk(model)[1] for name, model in flows.items()}
    assert curvature["ot"] < 0.2 * curvature["independent"]
    assert curvature["reflow"] < 0.2 * curvature["independent"]
    assert curvature["independent"] > 0.1  # there was something to straighten


@pytest.mark.parametrize("name", ["independent", "ot", "reflow"])
def test_the_data_are_reproduced(flows, name):
    """To within a few times the distance of two halves of the data, which these small networks leave; noise is twice as far."""
    x, fresh = walk(flows[name])[0], points(1)
    ruler = Ruler(fresh, 2000, 0)
    found, noise = ruler(x), ruler(normal(3, 2000, 2))
    limit = 6 * ruler.splits["sliced_wasserstein"][0]
    assert found["sliced_wasserstein"] < limit < noise["sliced_wasserstein"] / 2
    assert found["mmd2"] < 0.03 < noise["mmd2"] / 2


def test_pairs_are_those_of_the_teachers_ode(flows):
    """x0 is where a solver of another kind ends from the same noise; the pool is a function of the seed, a batch of the draw."""
    teacher = flows["independent"]
    x0, eps = Pool(copy.deepcopy(teacher))(torch.zeros(300, 2), torch.zeros(300, 2), Draw(0, 0))
    ends = teacher.sde.lam(torch.tensor([teacher.sde.t_max, teacher.sde.t_min], dtype=torch.float64)).tolist()
    (reference,), _ = DormandPrince(1e-6).solve(pf_ode(teacher), (teacher.sde.sample_prior(eps),), *ends)
    assert (x0 - reference).abs().max() < 5e-3
    again = Pool(copy.deepcopy(teacher))
    assert torch.equal(again(torch.zeros(300, 2), eps, Draw(0, 0))[0], x0)
    assert not torch.equal(again(torch.zeros(300, 2), eps, Draw(0, 1))[0], x0)
    assert abs(eps.mean()) < 4 / 600**0.5 and abs(eps.std() - 1) < 4 / 1200**0.5


TINY = (
    "data=moons", "network=mlp", "network.width=8", "network.blocks=1", "batch_size=16", "preview.every=0",
    "trainer.max_steps=2", "trainer.limit_val_batches=1", "sde=flow",
)  # fmt: skip
REFLOW = ("loss=flow", "coupling=reflow", "coupling.pairs=40", "coupling.steps=2")
CKPT = "ckpt=first/checkpoints/last.ckpt"


def test_what_does_not_fit_is_refused(cli, tmp_path):
    """In one sentence, before a folder is made."""
    assert cli("train", *TINY, "loss=ot_flow", "out=first").code == 0
    config = checkpoint.read(tmp_path / "first/checkpoints/last.ckpt")["config"]
    assert config["loss"]["coupling"]["_target_"].endswith("OptimalTransport")
    for words, sentence in (
        (REFLOW, "coupling=reflow starts from a trained model"),
        ((CKPT,), "no such coupling"),
        (("coupling=ot",), "a coupling would do nothing"),
        (("loss=ot_flow", "batch_size=1"), "batch_size must be at least 2"),
        ((*REFLOW, CKPT, "data=digits"), "makes items of shape (2,)"),
        ((*REFLOW, "ckpt=nowhere"), "there is no checkpoint"),
    ):
        refused = cli("train", *TINY, *words, "out=second")
        assert (refused.code, refused.err.count("error: ")) == (2, 1), refused.err
        assert sentence in refused.err
        assert not (tmp_path / "second").exists()


@pytest.mark.heavy
def test_reflow_in_two_processes(cli, tmp_path):
    """Each rank makes the same pool, and they train one model; its own checkpoint then needs no teacher."""
    assert cli("train", *TINY, "loss=flow", "out=first").code == 0
    command = [
        sys.executable,
        "-m",
        "diffcli",
        "train",
        *TINY,
        *REFLOW,
        CKPT,
        "trainer=ddp",
        "device=cpu",
        "out=second",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "first/checkpoints/last.ckpt").unlink()
    sampled = cli("sample", "ckpt=second/checkpoints/last.ckpt", "n=2", "steps=2")
    assert sampled.code == 0, sampled.err
