"""Guidance as a user asks for it: the formula is said, the two forms are one, nfe= holds, and what makes no sense is refused."""

import inspect
import json
import re

import numpy as np
import pytest
import yaml

from diffcli.cli import main
from diffcli.commands.build import locate
from diffcli.commands.guidance import LOADED
from diffcli.metrics.card import Card
from diffcli.paths import conf_dir

EXACT = ("network=exact", "data=mixture", "dtype=float64", "n=20")
MODEL = ("train", "data=mixture", "data.n=200", "network.width=8", "network.blocks=1", "preview.every=0")
JUDGE = ("train", "task=classifier", "data=mixture", "data.n=200", "task.network.width=8", "task.network.features=4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Models of the mixture, trained for two steps: with labels, always told, without, and classifiers; by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, asked in {
        "label": (*MODEL, "condition=label"),
        "told": (*MODEL, "condition=label", "drop=0"),
        "plain": (*MODEL, "sde=ve"),
        "cnf": (*MODEL, "loss=cnf", "condition=label"),
        "learned": (
            *MODEL,
            "condition=label",
            "schedule=ddpm",
            "loss=vlb",
            "loss.variance=learned",
            "prediction.outputs=2",
        ),
        "noisy": (*JUDGE, "sde=ve"),
        "clean": JUDGE,
        "two": (*JUDGE, "sde=vp", "data.name=two"),
    }.items():
        code = main([*asked, "trainer.max_steps=2", "batch_size=16", f"out={folder / name}"])
        assert code == 0, name
    return {path.name: path / "checkpoints/last.ckpt" for path in folder.iterdir()}


def drawn(cli, tmp_path, name, *asked):
    """The samples, the record and what was printed."""
    done = cli("sample", *asked, "steps=6", f"out={name}")
    assert done.code == 0, done.err
    return np.load(tmp_path / name / "samples.npy"), json.loads((tmp_path / name / "run.json").read_text()), done.out


def test_the_two_guidances_are_one_and_say_which(cli, tmp_path):
    asked = (*EXACT, "label=all")
    x, record, out = drawn(cli, tmp_path, "a", *asked, "guidance=cfg", "guidance.scale=2")
    assert "guidance: s(y) + 2 (s(y) - s(∅)); as s(∅) + w (s(y) - s(∅)): w = 3" in out
    assert record["results"]["guidance"] in out
    assert record["config"]["guidance"]["scale"] == 2
    assert record["nfe"]["mean"] == 24  # dpm2's 12, twice
    by, record, out = drawn(cli, tmp_path, "b", *asked, "guidance=classifier", "guidance.scale=2")
    assert "with exact parts cfg with scale = 2, or this on s(x,t) with scale = 3" in out
    assert record["nfe"]["mean"] == 12
    free = ("guidance=classifier", "guidance.model=unconditional", "guidance.scale=3")
    un, _, out = drawn(cli, tmp_path, "c", *asked, *free)
    assert "cfg with scale = 2" in out
    assert np.abs(x - by).max() < 1e-8
    assert np.abs(x - un).max() < 1e-8
    plain, _, _ = drawn(cli, tmp_path, "d", *asked)
    assert np.abs(x - plain).max() > 0.1
    none, record, _ = drawn(cli, tmp_path, "none", *asked, "guidance=cfg", "guidance.scale=0")
    assert np.array_equal(none, plain)
    assert record["nfe"]["mean"] == 12
    away = ("guidance=cfg", "guidance.scale=-0.5", "guidance.interval=[0.2,0.8]", "dry_run=true")
    said = "s(y) - 0.5 (s(y) - s(∅)); as s(∅) + w (s(y) - s(∅)): w = 0.5; for t in [0.2, 0.8]"
    assert said in cli("sample", *asked, *away).out


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm2"])
def test_nfe_is_what_is_taken_at_most(cli, tmp_path, sampler):
    asked = ("sample", *EXACT, "label=0", "guidance=cfg", f"sampler={sampler}", "nfe=11", "out=s")
    assert cli(*asked).code == 0
    taken = json.loads((tmp_path / "s/run.json").read_text())["nfe"]["max"]
    assert taken == {"ddim": 10, "ancestral": 10, "dpm2": 8}[sampler]


def test_models_of_checkpoints(cli, tmp_path, runs):
    """A classifier on another SDE, on a model without labels; a second model on another SDE; each by its names."""
    plain, _, _ = drawn(cli, tmp_path, "plain", f"ckpt={runs['plain']}", "n=8")
    classifier = ("guidance=classifier", f"guidance.ckpt={runs['noisy']}", "label=[component 1,3]")
    x, _, out = drawn(cli, tmp_path, "c", f"ckpt={runs['plain']}", "n=8", *classifier)
    assert "s(x,t) + 1 grad log c(y|x,t)" in out
    assert np.abs(x - plain).max() > 1e-4
    for more in ((*classifier, "sde=vp"), ("guidance=classifier", "label=1")):
        done = cli("sample", f"ckpt={runs['plain']}", *more, "dry_run=true")
        assert done.code == 0, done.err
    assert "c the exact posterior" in done.out
    auto = ("guidance=autoguidance", f"guidance.ckpt={runs['plain']}", "guidance.weights=raw", "label=2", "n=8")
    out, record = drawn(cli, tmp_path, "f", f"ckpt={runs['label']}", *auto)[:0:-1]
    assert "told no condition; as x0_other + w (x0_hat - x0_other): w = 2" in out
    assert record["nfe"]["mean"] == 22  # not at the first 2: the noise of vp, 152, is above that of ve
    same = (f"ckpt={runs['label']}", "guidance=autoguidance", f"guidance.ckpt={runs['label']}", "label=2", "n=8")
    x, _, out = drawn(cli, tmp_path, "g", *same, "guidance.scale=7")
    assert "told the same conditions" in out
    assert np.allclose(x, drawn(cli, tmp_path, "h", f"ckpt={runs['label']}", "label=2", "n=8")[0], atol=1e-4)
    learned = (f"ckpt={runs['learned']}", "sampler=ancestral", "sampler.variance=learned", "label=all", "n=8")
    x, record, _ = drawn(cli, tmp_path, "i", *learned, "guidance=cfg", "guidance.rescale=0.5", "trajectory=true")
    assert record["nfe"]["mean"] == 14
    assert np.isfinite(x).all()
    x, _, _ = drawn(cli, tmp_path, "j", f"ckpt={runs['cnf']}", "label=all", "n=8", "guidance=cfg")
    assert np.isfinite(x).all()


REFUSED = [  # model, words, what the sentence says
    (None, "guidance=cfg", "none is given"),
    (None, "guidance=cfg label=none", "none is given"),
    (None, "guidance=classifier", "none is given"),
    (None, "guidance=autoguidance label=0", "second, worse model"),
    (None, "guidance=cfg label=0 guidance.interval=[0.9,0.1]", "low < high"),
    (None, "guidance=cfg label=0 guidance.interval=[0.9]", "low < high"),
    (None, "guidance=cfg label=0 guidance.rescale=2", "rescale"),
    (None, "guidance=cfg label=0 guidance.scale=much", "guidance.scale must be a number"),
    (None, "guidance=cfg label=0 nfe=3", "one step of this sampler takes 4"),
    (None, "guidance=classifier label=0 sampler=dpm_taylor", "dpm_taylor"),
    (None, "guidance=classifier label=0 guidance.model=both", "guidance.model"),
    (None, "guidance=classifier label=0 guidance.ckpt=nowhere", "no checkpoint nowhere"),
    (None, "guidance=classifier label=0 guidance.ckpt=5", "guidance.ckpt must be text"),
    (None, "guidance=classifier label=0 guidance.ckpt={clean}", "clean items"),
    (None, "guidance=classifier label=0 guidance.ckpt={two}", "tells apart component 0, component 1"),
    ("plain", "guidance=cfg", "without conditions"),
    ("plain", "guidance=classifier guidance.ckpt={noisy} label=cat", "no label 'cat'"),
    ("plain", "guidance=classifier guidance.ckpt={noisy} label=0 guidance.model=conditional", "takes no label"),
    ("plain", "guidance=autoguidance guidance.ckpt={told}", "always told its label"),
    ("plain", "guidance=autoguidance guidance.ckpt={cnf}", "free field"),
    ("told", "guidance=cfg label=0", "drop=0"),
    ("told", "guidance=classifier guidance.ckpt={noisy} label=0 guidance.model=unconditional", "drop=0"),
    ("cnf", "guidance=classifier guidance.ckpt={noisy} label=0", "free field"),
    ("cnf", "guidance=cfg guidance.rescale=0.5 label=0", "free field"),
]


@pytest.mark.parametrize(("model", "words", "what"), REFUSED, ids=lambda a: a and re.sub(r"\W+", "-", a))
def test_refused_before_any_work(cli, tmp_path, runs, model, words, what):
    asked = EXACT if model is None else (f"ckpt={runs[model]}", "n=20")
    done = cli("sample", *asked, *words.format(**runs).split(), "out=s")
    assert done.code == 2, done.err
    assert what in done.err
    assert done.err.startswith("error: ")
    assert not (tmp_path / "s").exists()


def test_compare_measures_to_the_end_of_the_guided_ode(cli, tmp_path):
    asked = (
        "compare",
        *EXACT[:2],
        "label=all",
        "guidance=cfg",
        "guidance.scale=0.5",
        "n=40",
        "grid.t_min=0.1",
        "out=c",
    )
    done = cli(*asked, "samplers=[rk4,dpm2]", "nfe=[8,320]")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "c/run.json").read_text())["results"]
    cells = {(c["sampler"], c["budget"]): c for c in record["cells"]}
    assert [cells[key]["nfe"] for key in (("rk4", 8), ("dpm2", 8), ("rk4", 320))] == [8, 8, 320]
    assert cells["rk4", 320]["error"] < 1e-4 < cells["rk4", 8]["error"]
    assert record["guidance"].startswith("s(y) + 0.5")
    assert "label = all, guidance = cfg 0.5" in (tmp_path / "c/compare.md").read_text()


def test_the_card_names_label_and_guidance(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = ("evaluate", *EXACT[:2], "n=50", "repeats=1", "steps=4", "neighbours=false")
    assert cli(*few, "label=[0,1]", "guidance=cfg", "guidance.scale=3", "out=a").code == 0
    assert cli(*few, "label=all", "out=b").code == 0
    a, b = (Card.read(tmp_path / name) for name in "ab")
    assert a.draw["label"] == [0, 1]
    assert a.draw["guidance"]["name"] == "ClassifierFree"
    assert a.draw["guidance"]["formula"].startswith("s(y) + 3 (s(y) - s(∅))")
    assert (b.draw["label"], b.draw["guidance"]) == ("all", None)
    assert any("label [0, 1]" in w for w in a.warnings)
    assert not any("label" in w for w in b.warnings)
    assert a.draw["nfe"]["mean"] == 2 * b.draw["nfe"]["mean"]
    done = cli("compare", "cards=[a,b]", "out=c")
    assert done.code == 0, done.err
    assert "ClassifierFree 3" in done.out
    done = cli("evaluate", "samples=a/card.json", "data=mixture", "guidance=cfg", "out=d")
    assert done.code == 2
    assert "guidance says nothing" in done.err


@pytest.mark.parametrize("name", ["cfg", "autoguidance", "classifier"])
def test_a_yaml_has_the_settings_of_its_class(name):
    """But for what the command loads, and what it finds out."""
    node = yaml.safe_load((conf_dir() / f"guidance/{name}.yaml").read_text())
    known = inspect.signature(locate(node.pop("_target_"), "guidance")).parameters
    free = {
        k: p.default for k, p in known.items() if k not in ("inner", "other", "classifier", "told", "names", *LOADED)
    }
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k not in LOADED}
    assert given == free
