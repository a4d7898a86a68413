"""diffcli diagnose: its files, what it says of models that it can ask little, and of wrong settings."""

import json
import re
from html import escape

import pytest

from diffcli.diagnosis.checks import CHECKS

FAST = ("n=40", "times=2", "data.n=200")
CHEAP = "checks=[loss,calibration,ema]"


def test_a_mixture_with_a_known_error(cli, tmp_path):
    done = cli("diagnose", "network=exact", "network.error=0.3", "data=mixture", "checks=[loss,ema]", *FAST, "out=d")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "d/diagnosis.json").read_text())
    assert list(content["checks"]) == ["loss", "ema"]
    assert content["items"] == 40
    assert content["held_out"] is True
    found = content["checks"]["loss"]
    assert found["status"] == "bad"
    assert 0.02 < found["numbers"]["fisher_mean"]["value"] < 0.3
    assert content["checks"]["ema"]["status"] == "left out"
    text = (tmp_path / "d/diagnosis.html").read_text()
    assert escape(found["measured"]) in text
    assert set(re.findall(r'<section id="(\w+)"', text)) == {"loss", "ema"}
    assert found["measured"] in done.out
    record = json.loads((tmp_path / "d/run.json").read_text())
    assert record["status"] == "finished"
    assert record["nfe"] == content["evaluations"] == 2 * 2 * 40  # held out and train, at two levels
    assert record["results"]["loss"]["fisher_mean"] == found["numbers"]["fisher_mean"]


def test_a_trained_model_has_both_weights(cli, tmp_path):
    tiny = ("trainer.max_steps=3", "batch_size=8", "network.width=8", "network.blocks=1", "preview.every=0")
    assert cli("train", "data=moons", "data.n=60", *tiny, "out=t").code == 0
    done = cli("diagnose", "ckpt=t/checkpoints/last.ckpt", CHEAP, "n=20", "times=2", "out=d", "weights=raw")
    assert done.code == 0, done.err
    checks = json.loads((tmp_path / "d/diagnosis.json").read_text())["checks"]
    (row, _) = checks["loss"]["numbers"]["levels"]
    raw, other = row["loss_raw"], row["loss_ema"]
    ema = checks["ema"]["numbers"]
    assert ema["levels"][0]["ema_minus_raw"] == pytest.approx(other - raw)
    assert ema["parameters_distance"] > 0
    assert cli("diagnose", "ckpt=t/checkpoints/last.ckpt", CHEAP, "n=20", "times=2", "out=d").code == 2  # holds a run
    again = cli("diagnose", "ckpt=t/checkpoints/last.ckpt", CHEAP, "n=20", "times=2", "out=e")
    assert again.code == 0
    (same, _) = json.loads((tmp_path / "e/diagnosis.json").read_text())["checks"]["loss"]["numbers"]["levels"]
    assert same["loss_ema"] == pytest.approx(other)  # the same items and noise, whichever weights are asked for


def test_models_of_one_level_and_free_fields_say_what_is_left_out(cli, tmp_path):
    tiny = ("data=moons", "data.n=60", "batch_size=8", "network.width=8", "network.blocks=1", "preview.every=0")
    steps = "trainer.max_steps=1"
    assert cli("train", *tiny, steps, "levels=one", "level.sigma=0.5", "out=one").code == 0
    assert cli("train", *tiny, steps, "loss=cnf", "loss.solver=rk4", "loss.steps=2", "out=free").code == 0
    left_out = {}
    for name in ("one", "free"):
        ckpt = f"ckpt={name}/checkpoints/last.ckpt"
        done = cli(
            "diagnose", ckpt, "n=16", "times=2", f"out=d{name}", "checks=[loss,regions,fpe,path,calibration,gap]"
        )
        assert done.code == 0, done.err
        checks = json.loads((tmp_path / f"d{name}/diagnosis.json").read_text())["checks"]
        left_out[name] = {k for k, found in checks.items() if found["status"] == "left out"}
    assert left_out == {"one": {"fpe", "gap"}, "free": {"loss", "regions", "fpe", "path", "calibration", "gap"}}


def test_wrong_settings_are_one_sentence(cli, tmp_path):
    exact = ("network=exact", "data=mixture")
    for words, part in {
        ("checks=[los]",): "'loss'",
        ("checks=[]",): "nothing to check",
        ("n=0",): "n must be at least 1",
        ("n=7",): "7 items of the test split cannot tell",
        ("data.n=1",): "1 item of the test split",
        ("times=0",): "times must be at least 1",
        ("probes=0",): "probes must be at least 1",
        ("time=3",): "times",
        ("split=tset",): "test",
    }.items():
        done = cli("diagnose", *exact, *words)
        assert done.code == 2, words
        assert part in done.err, done.err
        assert "Traceback" not in done.err
    assert cli("diagnose", "ckpt=no.ckpt").code == 2
    assert "takes no model" in cli("diagnose", "self_check=true", "ckpt=no.ckpt").err
    for word in ("n=9", "checks=[loss]", "data.n=3", "weights=raw"):
        done = cli("diagnose", "self_check=true", word)
        assert (done.code, "the same laws" in done.err) == (2, True), word
    done = cli("diagnose", *exact, "dry_run=true")
    assert done.code == 0
    assert all(name in done.out for name in CHECKS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("passed", [True, False])
def test_a_self_check_fails_with_its_laws(cli, tmp_path, monkeypatch, passed):
    from diffcli.diagnosis import self_check
    from diffcli.diagnosis.law import Law

    laws = [
        Law("first", "a = b", "Author 2000", 1e-9, 1e-6, True, 0.1, "there"),
        Law("second", "c <= d", "", 1e-7 if passed else float("inf"), 1e-6, passed, 0.2, "here & now"),
    ]
    monkeypatch.setattr(self_check, "run", lambda *_: laws)
    done = cli("diagnose", "self_check=true", "out=s")
    assert done.code == (0 if passed else 4), done.err
    content = json.loads((tmp_path / "s/diagnosis.json").read_text())
    assert content["passed"] is passed
    assert [row["value"] for row in content["laws"]] == [1e-9, 1e-7 if passed else None]
    assert "here &amp; now" in (tmp_path / "s/diagnosis.html").read_text()
    assert f"{1 + passed} of 2 laws hold" in done.out
    assert ("BROKEN" in done.out) is not passed
