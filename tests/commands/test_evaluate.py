"""diffcli evaluate: good samples score what real items score, bad ones worse; a card says how and by how much."""

from diffcli.metrics.card import Card

EXACT = ("network=exact", "data=mixture")
FILES = {"run.json", "card.json", "card.md", "card.png", "neighbours.png"}


def card_of(cli, tmp_path, name, *asked, files=FILES):
    done = cli("evaluate", f"out={name}", *asked)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / name).iterdir()} == files
    return Card.read(tmp_path / name), done.out


def z(card, name):
    """How many of the floor's sd, of both in quadrature, the mean is above the floor."""
    f = card.figure(name)
    return (f.mean - f.floor_mean) / (f.floor_sd**2 + f.sd**2 / len(f.values)) ** 0.5


def test_exact_samples_score_as_real_items(cli, tmp_path):
    """And a known error of the score, or too few steps, are told apart."""
    good, out = card_of(cli, tmp_path, "good", *EXACT, "n=800", "steps=60", "repeats=2", "sampler=dpmpp_2m")
    assert [f.name for f in good.figures] == [
        "sliced_wasserstein", "mmd2", "energy_distance", "kl", "covered_modes", "mode_weights", "between_modes"
    ]  # fmt: skip
    for f in good.figures:
        assert len(f.values) == 2
        assert abs(z(good, f.name)) < 4 if f.floor_sd else f.mean == f.floor_mean, f
        assert f.label in out
    assert good.memorisation["memorised"] is False
    bad, _ = card_of(
        cli, tmp_path, "bad", *EXACT, "n=800", "steps=10", "repeats=2", "sampler=dpmpp_2m", "network.error=0.5"
    )
    for name in ("sliced_wasserstein", "mmd2", "energy_distance", "kl"):
        assert bad.figure(name).mean > good.figure(name).mean
        assert z(bad, name) > 4, name
