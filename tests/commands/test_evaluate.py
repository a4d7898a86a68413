"""diffcli evaluate: good samples score what two halves of the data score, bad ones more."""

import json


def figures(cli, tmp_path, name, *asked):
    done = cli("evaluate", "network=exact", "data=mixture", "n=1500", "batch_size=1500", f"out={name}", *asked)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / name).iterdir()} == {"run.json", "metrics.json", "comparison.png"}
    return json.loads((tmp_path / name / "metrics.json").read_text()), done.out


def test_exact_samples_score_as_the_data(cli, tmp_path):
    """And the wrong mixture, or too few steps, are told apart."""
    good, out = figures(cli, tmp_path, "good", "steps=100")
    assert good["m"] == 1500
    assert good["held_out"]
    assert good["sliced_wasserstein"] < 2 * good["sliced_wasserstein_halves"]
    assert abs(good["mmd2"]) < 5 * abs(good["mmd2_halves"]) + 1e-3
    assert f"{good['sliced_wasserstein']:.5f}" in out
    bad, _ = figures(cli, tmp_path, "bad", "sampler=euler_maruyama", "steps=3")
    assert bad["sliced_wasserstein"] > 3 * bad["sliced_wasserstein_halves"]
    assert bad["mmd2"] > 10 * abs(bad["mmd2_halves"])


def test_split_that_was_trained_on_is_said(cli, tmp_path):
    _, out = figures(cli, tmp_path, "train", "split=train", "steps=5")
    assert "not held out" in out
