"""loss=cnf and prediction=energy from the command line: what they train, what takes them, and what is refused."""

import json
import math

import pytest

from diffcli.data.points import Points

TINY = ("data=moons", "network=mlp", "network.width=16", "network.blocks=1", "batch_size=64", "optim.warmup=1")
CNF = ("train", "loss=cnf", *TINY, "loss.solver=rk4", "loss.steps=4", "preview.every=0")


def nll_of(cli, tmp_path, ckpt, name, *more):
    done = cli("nll", f"ckpt={ckpt}", "n=64", "likelihood.divergence=exact", f"out={name}", *more)
    assert done.code == 0, done.err
    return json.loads((tmp_path / name / "run.json").read_text())["results"]["log_prob_mean"]


@pytest.mark.heavy
def test_a_flow_trained_on_moons_has_a_better_exact_nll(cli, tmp_path):
    done = cli(*CNF, "trainer.max_steps=30", "optim.lr=1e-2", "optim.decay=none", "ema.decay=0.5", "out=t")
    assert done.code == 0, done.err
    after = nll_of(cli, tmp_path, "t/checkpoints/last.ckpt", "l", "likelihood.solver=rk4", "likelihood.steps=12")
    x = Points("moons").split("test").__getitems__(range(64))[0]
    before = (-0.5 * x.square().sum(1) - math.log(2 * math.pi)).mean().item()  # of the field that is zero, as it starts
    assert after > before + 0.2
    ckpt = "ckpt=t/checkpoints/last.ckpt"
    for sampler in ("sampler=dpm2", "sampler=heun", "sampler=ddim"):  # ODE samplers in t, lam or sigma
        assert cli("sample", ckpt, "n=16", "steps=5", sampler, "out=s", "overwrite=true").code == 0
    for words, sentence in (
        (("sampler=ancestral",), "no score for this SDE sampler"),
        (("sampler=ddim", "sampler.eta=0.5"), "no score for this SDE sampler"),
        (("last=denoise",), "x0_hat is no posterior mean"),
        (("sde=ve",), "made for its own SDE alone"),
    ):
        done = cli("sample", ckpt, "n=4", "out=s2", *words)
        assert (done.code, done.err.count("\n") <= 2) == (2, True), done.err
        assert sentence in done.err
        assert not (tmp_path / "s2").exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("prediction=eps", "loss=cnf needs one"),
        ("prediction.free=false", "cnf trains a free field"),
        ("levels=one", "a velocity is that of a process, and one noise level has none"),
        ("compile=true", "compile=true cannot differentiate a network twice"),
        ("network.dropout=0.1", "take network.dropout=0"),
        ("loss.divergence=exakt", "loss.divergence cannot be 'exakt'"),
        ("loss.tol=2", "tol must lie between 0 and 1, got 2"),
        ("loss.solver=heun", "loss.solver cannot be 'heun'"),
        ("loss.integrate.max_nfe=0", "max_nfe must be at least 1, got 0"),
    ],
)
def test_what_cnf_cannot_train_is_refused_before_work(cli, tmp_path, word, sentence):
    done = cli(*CNF, "trainer.max_steps=1", "out=t", word)
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    assert sentence in done.err
    assert not (tmp_path / "t").exists()


def test_preview_with_an_sde_sampler_is_refused(cli):
    done = cli("train", "loss=cnf", *TINY, "trainer.max_steps=1", "out=t", "sampler=ancestral")
    assert done.code == 2
    assert "no score for this SDE sampler" in done.err


def test_a_field_too_hard_for_its_budget_ends_with_a_sentence(cli):
    done = cli(*CNF, "trainer.max_steps=1", "out=t", "loss.solver=rk45", "loss.integrate.max_nfe=3")
    assert done.code == 4, done.err
    assert "more than 3 evaluations in one solve" in done.err
    assert "Traceback" not in done.err


def test_a_prior_that_a_process_would_not_reach_is_a_flows_own_choice(cli):
    words = ("trainer.max_steps=1", "dry_run=true", "schedule.beta_max=0.2")
    assert cli(*CNF, *words).code == 0
    assert "the path still holds" in cli("train", *TINY, *words).err


@pytest.mark.heavy
def test_an_energy_trains_samples_and_has_a_likelihood(cli, tmp_path):
    done = cli("train", "prediction=energy", *TINY, "trainer.max_steps=3", "preview.n=4", "preview.steps=2", "out=t")
    assert done.code == 0, done.err
    ckpt = "t/checkpoints/last.ckpt"
    assert cli("sample", f"ckpt={ckpt}", "n=8", "steps=3", "out=s").code == 0
    assert cli("sample", f"ckpt={ckpt}", "n=8", "steps=3", "sampler=ancestral", "sde=ve", "out=s2").code == 0
    assert nll_of(cli, tmp_path, ckpt, "l", "likelihood.solver=rk4", "likelihood.steps=4") < 0
    done = cli("train", "prediction=energy", *TINY, "trainer.max_steps=1", "compile=true", "out=t2")
    assert done.code == 2
    assert "as this prediction does" in done.err
