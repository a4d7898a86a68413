import math
from dataclasses import asdict

import pytest
import torch
from scipy.stats import binom, mannwhitneyu

from diffcli.data.base import TensorItems
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.kde import KDE
from diffcli.diffusion.loss.base import TrainingSet
from diffcli.diffusion.samplers.ddim import DDIM
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.errors import UsageError
from diffcli.explain.neighbours_picture import draw
from diffcli.metrics.neighbours import LEVEL, MemorisationCheck
from diffcli.sampling import draw_samples


def normal(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def judged(training, held_out, samples):
    check = MemorisationCheck(training, held_out)
    check.add(samples)
    return check.result()


def copies(training, n, noise, seed=9):
    generator = torch.Generator().manual_seed(seed)
    picked = training[torch.randint(len(training), (n,), generator=generator)]
    return picked + noise * torch.randn(picked.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("d", [2, 30])
def test_copies_are_found(d):
    found = judged(normal(2000, d, 0), normal(500, d, 1), copies(normal(2000, d, 0), 500, 1e-3))
    assert found.memorised and found.verdict.startswith(
        "samples are closer to the training items than held-out items are: memorised"
    )
    assert found.auc > 0.9 and found.p < 1e-10 and found.own_p < 1e-10 and found.copies_p < 1e-10
    assert found.copied > 0.9 and found.copies > 0.9 and found.closer > 0.9


def test_what_sampling_the_kde_network_gives_is_found():
    sde, training = VP(Linear()), normal(300, 5, 0)
    model = KDE(sde, [5], 300)
    model.fit(TrainingSet(lambda: training, (5,)))
    times = UniformLam()(sde, 20)
    x = torch.cat([batch.x for batch in draw_samples(model, DDIM(), times, (5,), 150, seed=0, dtype=torch.float64)])
    found = judged(training, normal(200, 5, 1), x)
    assert found.memorised and found.copies > 0.9


def test_a_copy_of_an_item_that_is_there_twice_is_a_copy():
    training = normal(50, 4, 0)
    assert judged(training.repeat(2, 1), normal(40, 4, 1), training[:40]).copies == 1


def test_a_smooth_kde_is_found_though_no_sample_is_a_copy():
    training = normal(300, 5, 0)
    found = judged(training, normal(300, 5, 1), copies(training, 300, 0.3))
    assert found.memorised and found.copies < 0.1 and found.own_p < LEVEL


def test_held_out_draws_are_called_memorised_as_seldom_as_the_level_says():
    """The p of each test is uniform, or above it, where samples, held-out and training items are of one law."""
    found = [judged(normal(150, 3, 3 * i), normal(80, 3, 3 * i + 1), normal(80, 3, 3 * i + 2)) for i in range(200)]
    assert sum(f.memorised for f in found) <= binom.ppf(0.999, 200, 2 * LEVEL)
    for name in ("p", "own_p"):
        values = torch.tensor([getattr(f, name) for f in found])
        for q in (0.1, 0.5):
            assert abs((values < q).double().mean() - q) < 4 * math.sqrt(q * (1 - q) / 200)
    assert (torch.tensor([f.copies_p for f in found]) < 0.05).double().mean() < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)
    # and the parts have the expectation and the error that they are said to have
    closer, own, copied, auc = (
        torch.tensor([getattr(f, k) for f in found]) for k in ("closer", "own", "copied", "auc")
    )
    assert abs(closer.mean() - 0.05) < 4 * closer.std() / math.sqrt(200) + 1 / 80
    assert abs(own.mean() - 150 / 230) < 4 * own.std() / math.sqrt(200)
    assert abs(auc.mean() - 0.5) < 4 * auc.std() / math.sqrt(200)
    spread = math.sqrt(sum(f.copied_std_err**2 for f in found) / 200)
    assert copied.std().item() == pytest.approx(spread, rel=0.2)


def test_samples_of_too_little_variety_are_not_called_memorised():
    """They are near to everything that is typical, trained on or not: only the label of the nearest item tells."""
    found = [
        judged(normal(400, 8, 3 * i), normal(200, 8, 3 * i + 1), 0.5 * normal(200, 8, 3 * i + 2)) for i in range(60)
    ]
    assert sum(f.p < LEVEL for f in found) > 50
    assert sum(f.memorised for f in found) <= binom.ppf(0.999, 60, 2 * LEVEL)
    assert any(f.verdict.endswith("of too little variety, not memorised") for f in found)


def test_a_difference_of_the_splits_that_only_many_items_show_is_not_called_memorised():
    """The held-out items are of a law a little wider than that of the training items and of the samples."""
    found = judged(normal(4000, 3, 0), 1.1 * normal(4000, 3, 1), normal(4000, 3, 2))
    assert found.p < LEVEL and found.own_p < LEVEL and 0.5 < found.auc < 0.55
    assert not found.memorised and found.verdict.startswith("samples are hardly any closer")


def test_a_tenth_of_copies_among_good_samples_is_found():
    training = normal(2000, 10, 0)
    samples = torch.cat([copies(training, 50, 1e-2), normal(450, 10, 2)])
    found = judged(training, normal(500, 10, 1), samples)
    assert found.memorised and 0.09 < found.copies < 0.12 and found.copies_held_out < 0.01
    assert "10.2% of them lie within a third" in found.verdict


@pytest.mark.parametrize("d", [1, 2, 3])
def test_where_items_lie_evenly_a_ratio_below_a_third_has_the_chance_of_a_third_to_the_d(d):
    generator = torch.Generator().manual_seed(d)
    training = torch.rand(4000, d, dtype=torch.float64, generator=generator)
    inner = 0.2 + 0.6 * torch.rand(4000, d, dtype=torch.float64, generator=generator)
    part = judged(training, None, inner).copies
    chance = 3.0**-d
    assert abs(part - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000)


def test_the_parts_are_what_they_are_said_to_be():
    training, held_out, samples = normal(60, 2, 0), normal(25, 2, 1), 0.7 * normal(40, 2, 2)
    held_out[3] = training[5]
    samples[:4] = training[5]  # as near to a training item as to a held-out one
    found = judged(training, held_out, samples)
    near = torch.cdist(samples, training, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    other = torch.cdist(held_out, training, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    a, b = near[:, 0], other[:, 0]
    less, equal = (a[:, None] < b).double().mean(), (a[:, None] == b).double().mean()
    assert found.auc == pytest.approx((less + equal / 2).item())
    assert found.p == pytest.approx(mannwhitneyu(a, b, alternative="less", method="asymptotic").pvalue)
    assert found.closer == pytest.approx((a < b.quantile(0.05)).double().mean().item())
    assert found.distance == a.median().item() and found.distance_held_out == b.median().item()
    assert found.copies == ((near[:, 0] < near[:, 1] / 3) | (near[:, 0] == 0)).double().mean().item()
    to_held_out = torch.cdist(samples, held_out, compute_mode="donot_use_mm_for_euclid_dist")
    wins = (a < to_held_out.amin(1)).double() + 0.5 * (a == to_held_out.amin(1)).double()
    assert (wins == 0.5).sum() == 4
    assert found.own == pytest.approx(wins.mean().item())
    assert found.own_expected == 60 / 85
    # the p of a normal with the spread of the part when the labels of items are shuffled
    every = torch.cdist(samples, torch.cat([training, held_out]), compute_mode="donot_use_mm_for_euclid_dist")
    counts = (every == every.amin(1, keepdim=True)).double()
    counts = (counts / counts.sum(1, keepdim=True)).sum(0)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([counts[torch.randperm(85, generator=generator)[:60]].sum() / 40 for _ in range(5000)])
    assert shuffled.mean().item() == pytest.approx(60 / 85, abs=0.005)
    assert found.copied_std_err * 25 / 85 == pytest.approx(shuffled.std().item(), rel=0.05)


def test_batches_change_nothing_and_the_count_is_bounded():
    training, held_out, samples = TensorItems(normal(80, 2, 0)), TensorItems(normal(40, 2, 1)), normal(60, 2, 2)
    whole, parts, few = (MemorisationCheck(training, held_out, most=most) for most in (50, 50, 20))
    whole.add(samples[:50])
    for batch in samples.split(7):
        parts.add(batch)
        few.add(batch)
    assert asdict(whole.result()) == asdict(parts.result())
    assert parts.n == 50 and few.result().n == few.result().held_out == 20
    for check in (whole, parts):
        x, distances, indices, numbers = check.closest()
        assert (check.distances[:, 0].sort().values[:8] == distances[:, 0]).all()
        assert (x == samples[numbers]).all() and (check.first()[3] == torch.arange(8)).all()
        gap = (check.training_items(indices.flatten()).view(8, 3, 2) - x[:, None]).norm(dim=2)
        torch.testing.assert_close(gap, distances)


def test_without_held_out_items_there_is_no_verdict():
    check = MemorisationCheck(normal(20, 2, 0))
    check.add(normal(10, 2, 1))
    found = check.result()
    assert found.memorised is None and found.p is None and "no held-out items" in found.verdict


def test_with_few_held_out_items_a_lack_of_variety_is_not_ruled_out():
    training = normal(2000, 2, 0)
    found = judged(training, normal(30, 2, 1), 0.2 * normal(300, 2, 2))
    assert found.p < LEVEL and found.memorised and "more held-out items would tell" in found.verdict


def test_unfit_sets_are_refused():
    with pytest.raises(UsageError, match="2 items have no 3 nearest"):
        MemorisationCheck(normal(2, 2, 0))
    with pytest.raises(UsageError, match="1 held-out items are too few"):
        MemorisationCheck(normal(5, 2, 0), normal(1, 2, 0))
    check = MemorisationCheck(normal(5, 2, 0), normal(4, 2, 1))
    check.add(normal(0, 2, 0))
    with pytest.raises(UsageError, match="no samples"):
        check.result()
    check.add(normal(3, 2, 0))
    with pytest.raises(UsageError, match="quantile"):
        check.result(1.0)


@pytest.mark.parametrize(
    ("shape", "held"), [((1,), True), ((2,), False), ((5,), True), ((1, 8, 8), True), ((3, 6, 6), False)]
)
def test_the_picture_shows_images_and_points(shape, held, tmp_path):
    from PIL import Image

    size = math.prod(shape)
    training, held_out, samples = ((10 * normal(n, size, i)).reshape(n, *shape) for i, n in enumerate((30, 12, 5)))
    check = MemorisationCheck(training, held_out if held else None, shown=3)
    check.add(samples)
    draw(check, check.result(), 17 if len(shape) == 3 else None, tmp_path / "neighbours.png")
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert picture.width == 1485
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20)}
    assert len(colours) > 50
