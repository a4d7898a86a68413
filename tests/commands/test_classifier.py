"""`diffcli train task=classifier` as a user meets it: files, figures, and what is refused where."""

import csv
import json
import os
import shutil
import time

import pytest
import torch

from diffcli import checkpoint
from diffcli.cli import main
from diffcli.data.digits import Digits
from diffcli.errors import CheckpointError, UsageError

SMALL = ("task.network.channels=4", "task.network.multipliers=[1,2]", "task.network.width=16")
RUN = ("train", "task=classifier", *SMALL, "trainer.max_steps=10", "batch_size=64", "trainer.log_every_n_steps=5")
SCORE = (
    "train",
    "data=mixture",
    "data.n=100",
    "network.width=8",
    "network.blocks=1",
    "trainer.max_steps=2",
    "preview.every=0",
)


def test_files_and_figures_of_a_run(cli, tmp_path):
    done = cli(*RUN, "trainer.val_check_interval=5", "out=c")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "c/run.json").read_text())
    config, test = record["config"], record["results"]["test"]
    assert record["status"] == "finished"
    assert test["items"] == len(Digits().split("test")) == 180
    assert test["wrong"] == round(180 * (1 - test["accuracy"]))
    assert f"test accuracy {test['accuracy']:.4f} ± {test['std_err']:.4f}" in done.out
    assert "held-out" in done.out
    with (tmp_path / "c/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["val_accuracy"]) >= 0 for r in rows if r["val_loss"]] == [True, True]
    assert not any(r["val_accuracy"] for r in rows if r["loss"])
    assert not config.keys() & {"denoiser", "loss", "prediction", "network", "sampler", "grid", "sde", "preview"}
    assert config["classifier"]["class_names"] == Digits().class_names
    assert config["dequantize"] == "none"
    assert not (tmp_path / "c/samples").exists()


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_load_classifier_is_the_trained_model(cli, tmp_path, weights):
    """Its weights, its names, the shape, and the transform that takes source units to what it was trained on."""
    assert cli(*RUN, "out=c").code == 0
    path = tmp_path / "c/checkpoints/last.ckpt"
    stored = torch.load(path, weights_only=True)[{"raw": "state_dict"}.get(weights, weights)]
    classifier = checkpoint.load_classifier(path, weights)
    for name, value in classifier.named_parameters():
        assert torch.equal(value, stored[f"classifier.{name}"])
        assert not value.requires_grad
    assert not classifier.training
    assert (classifier.classes, classifier.class_names) == (10, Digits.class_names)
    assert classifier.shape == (1, 8, 8)
    assert classifier.data == {"_target_": "diffcli.data.digits.Digits"}
    x = Digits().split("test")[0][0][None]
    assert torch.equal(classifier.transform.encode(x), 2 * (x + 0.5) / 17 - 1)
    features, logits = classifier.read(classifier.transform.encode(x))
    assert (features.shape, logits.shape) == ((1, 64), (1, 10))


@pytest.mark.parametrize(
    ("words", "noised"),
    [
        ((), False),
        (("sde=ve",), True),
        (("schedule=cosine",), True),
        (("sde.t_min=0.01",), True),
        (("task.noise=true",), True),
        (("task.noise=true", "sde=flow", "task.time=importance"), True),
        (("sde=ve", "schedule=ncsn"), True),
    ],
    ids=str,
)
def test_a_process_that_was_typed_is_trained_on(cli, tmp_path, words, noised):
    done = cli(*RUN, "data=moons", "data.n=300", *words, "out=c", "trainer.max_steps=3")
    assert done.code == 0, done.err
    classifier = checkpoint.load_classifier(tmp_path / "c/checkpoints/last.ckpt")
    assert (classifier.sde is not None) == noised
    results = json.loads((tmp_path / "c/run.json").read_text())["results"]
    assert len(results.get("test_at_t", [])) == 5 * noised
    assert done.out.count("at t = ") == 5 * noised


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data=swiss_roll",), "these data have no labels"),
        (("data=mixture", "data.name=gaussian"), "these data have a single class"),
        (("loss=dsm",), "loss= is of a score"),
        (("loss.time=uniform",), "loss= is of a score"),
        (("network=unet",), "network= is of a score"),
        (("network=exact",), "network= is of a score"),
        (("sampler=dpm2",), "sampler= is of a score"),
        (("preview.every=0",), "preview= is of a score"),
        (("prediction=v",), "prediction= is of a score"),
        (("levels=one", "level.sigma=0.1"), "levels= is of a score"),
        (("sde=one",), "sde=one is a single noise level"),
        (("task.network=mlp",), "task.network=mlp: it is no group"),
        (("task.noise=false", "sde=vp"), "clean items, which has no sde"),
        (("task.noise=maybe",), "task.noise cannot be 'maybe'"),
        (("task.noise=1",), "task.noise cannot be 1"),
        (("task.time=importance",), "task.time= is of the noise levels"),
        (("sde=vp", "task.time=sometimes"), "task.time cannot be 'sometimes'"),
        (("sde=vp", "task.time=levels", "task.T=0"), "T must be at least 1"),
        (("sde=ou", "schedule=cosine"), "sde=ou has a clock of its own"),
        (("task.network.channels=0",), "channels must be at least 1"),
        (("task.network.chanels=8",), "task.network.channels"),
        (("task.network.classes=3",), "is not the data's, 10"),
        (("task.features=3",), "has no setting 'task.features'"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, tuple) else "",
)
def test_what_makes_no_sense_is_refused_in_a_sentence(cli, tmp_path, words, sentence):
    done = cli(*RUN, *words, "out=c")
    assert done.code == 2, done.out
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "c").exists()


def test_settings_of_a_classifier_are_no_scores(cli):
    done = cli(*SCORE, "task.noise=true", "out=s")
    assert done.code == 2
    assert "task.noise is a setting of task=classifier" in done.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """outputs/ with a score and a classifier."""
    folder = tmp_path_factory.mktemp("both") / "outputs"
    assert main([*SCORE, f"out={folder}/score"]) == 0
    assert main([*RUN, "data=mixture", "data.n=100", "trainer.max_steps=2", f"out={folder}/classes"]) == 0
    return folder


@pytest.fixture
def both(trained, tmp_path):
    """The last checkpoints of outputs/score and, newer, outputs/classes."""
    shutil.copytree(trained, tmp_path / "outputs")
    found = [tmp_path / f"outputs/{name}/checkpoints/last.ckpt" for name in ("score", "classes")]
    then = time.time() + 100
    os.utime(found[1], (then, then))
    return found


def test_the_newest_run_is_the_newest_scores(cli, tmp_path, both):
    done = cli("sample", "n=2", "steps=1", "out=s")
    assert done.code == 0, done.err
    assert "outputs/score/checkpoints/last.ckpt (the newest" in done.out
    both[0].unlink()
    none = cli("sample", "n=2", "steps=1", "out=t")
    assert none.code == 2
    assert "only classifiers" in none.err
    (tmp_path / "outputs/classes/run.json").write_text("torn")
    refused = cli("sample", "n=2", "steps=1", "out=t")  # nothing says what it is before it is read
    assert refused.code == 3
    assert "is a classifier" in refused.err


@pytest.mark.parametrize("command", ["sample", "nll", "evaluate", "export", "compare", "explain"])
def test_a_classifier_is_no_model_of_scores(cli, tmp_path, both, command):
    words = ("out=c", *(("samplers=[dpm2]",) if command == "compare" else ()))
    done = cli(command, f"ckpt={both[1]}", *words)
    assert done.code == 3, done.err
    assert f"{both[1]} is a classifier (task=classifier), not a model of scores" in done.err
    assert "features.ckpt" in done.err
    assert not (tmp_path / "c").exists()


def test_nor_a_teacher_of_a_coupling(cli, both):
    done = cli(*SCORE, "sde=flow", "loss=flow", "coupling=reflow", "coupling.pairs=8", f"ckpt={both[1]}", "out=c")
    assert done.code == 3
    assert "is a classifier" in done.err


def test_a_model_of_scores_is_no_classifier(both):
    with pytest.raises(CheckpointError, match=r"is a model of scores, not a classifier \(task=classifier\)"):
        checkpoint.load_classifier(both[0])
    with pytest.raises(UsageError, match="there is no checkpoint"):
        checkpoint.load_classifier("nowhere.ckpt")


def forged(content, **changes):
    node = content["config"]["classifier"] | changes
    return content | {"config": content["config"] | {"classifier": node}}


BIAS = "classifier.network.logits.bias"
FORGED = {
    "another class": lambda c: forged(c, _target_="diffcli.networks.mlp.MLP"),
    "code": lambda c: forged(c, _target_="os.system"),
    "code in the network": lambda c: forged(c, network={"_target_": "builtins.eval"}),
    "an sde that is none": lambda c: forged(c, sde=c["config"]["classifier"]["network"]),
    "another shape": lambda c: forged(c, shape=[3]),
    "names missing": lambda c: forged(c, class_names=[]),
    "a data set that is none": lambda c: c
    | {"config": c["config"] | {"data": {"_target_": "diffcli.networks.mlp.MLP", "shape": [2]}}},
    "both models": lambda c: c | {"config": c["config"] | {"denoiser": c["config"]["classifier"]}},
    "a missing weight": lambda c: c
    | {g: {k: v for k, v in c[g].items() if k != BIAS} for g in ("state_dict", "ema")},
    "nan": lambda c: c | {"ema": c["ema"] | {BIAS: c["ema"][BIAS] * torch.nan}},
}  # fmt: skip


@pytest.mark.parametrize("fault", FORGED)
def test_a_forged_classifier_is_refused(both, tmp_path, fault):
    torch.save(FORGED[fault](torch.load(both[1], weights_only=True)), tmp_path / "forged.ckpt")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_classifier(tmp_path / "forged.ckpt")
    assert "\n" not in error.value.message


def test_resume(cli, tmp_path):
    """Auto: afresh, finished, on; another network, or a training of another task, is never resumed or lost."""
    assert cli(*RUN, "out=c", "resume=auto").code == 0
    again = cli(*RUN, "out=c", "resume=auto")
    assert again.code == 0
    assert "finished" in again.out
    longer = cli(*RUN, "out=c", "resume=auto", "trainer.max_steps=15", "resume_allow=[trainer]")
    assert longer.code == 0, longer.err
    with (tmp_path / "c/metrics.csv").open() as file:
        assert [int(r["step"]) for r in csv.DictReader(file) if r["loss"]] == [4, 9, 14]
    for words, sentence in (
        ((*RUN, "task.network.features=8"), "classifier.network.features was 64, is now 8"),
        ((*RUN, "sde=vp"), "another classifier"),
        (SCORE, "is a classifier (task=classifier), not a model of scores"),
    ):
        for resume in ("auto", tmp_path / "c/checkpoints/last.ckpt"):
            refused = cli(*words, "out=c", f"resume={resume}")
            assert refused.code in (2, 3), refused.out
            assert sentence in refused.err
    assert json.loads((tmp_path / "c/run.json").read_text())["steps"] == 15


@pytest.mark.heavy
def test_dry_run_and_bfloat16(cli, tmp_path):
    dry = cli(*RUN, "out=c", "dry_run=true")
    assert dry.code == 0
    assert "would train" in dry.out
    assert not (tmp_path / "c").exists()
    short = (*RUN, "sde=vp", "trainer.max_steps=2", "trainer.val_check_interval=2", "data=moons", "data.n=100")
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        done = cli(*short, f"trainer.precision={precision}", f"out={precision}")
        assert done.code == 0, done.err
