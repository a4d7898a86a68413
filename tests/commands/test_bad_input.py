"""What a wrong command line answers: code 2, one sentence that names the nearest right word, nothing left on disk."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

SECONDS = 5  # for a wrong command line as a process of its own

# id: (command line, what its sentence must hold); {files} is a folder of unfit files, {ckpt} a checkpoint of points
ROWS = {
    # words that do not exist
    "command": ("trian", "'train'"),
    "command alias": ("likelyhood n=1", "'likelihood'"),
    "command case": ("Sample", "'sample'"),
    "bare word": ("train bareword", "key=value"),
    "bare word, known": ("sample sampler", "key=value"),
    "spaces around =": ("sample n = 5", "key=value"),
    "two =": ("train optim.lr==1", "'optim.lr==1'"),
    "no key": ("train =3", "'=3'"),
    "open bracket": ("train optim.lr=[1", "'optim.lr=[1'"),
    "flag": ("train --cfgg", "'--cfg'"),
    "flag for a setting": ("sample network=exact --n=5", "'--n'"),
    "flag without value": ("train --config-dir", "--config-dir"),
    "flag of no choice": ("train --cfg foo", "'foo'"),
    "flag alone": ("sample --resolve", "--cfg"),
    "config dir": ("train --config-dir nowhere", "nowhere"),
    "config name": ("train --config-name=foo", "'foo'"),
    "group": ("train sed=vp", "'sde'"),
    "group, longer": ("evaluate smapler=heun", "'sampler'"),
    "group of others": ("nll sampler=heun", "encode, decode, evaluate"),
    "group of train": ("sample network=exact loss=dsm", "one of train"),
    "option": ("train sde=vpp", "'vp'"),
    "option case": ("train sde=VP", "'vp'"),
    "option swapped": ("train loss=vbl", "'vlb'"),
    "option half": ("sample network=exact sampler=ancest", "'ancestral'"),
    "option long": ("train prediction=epsilon", "'eps'"),
    "option data": ("train data=mist", "'mnist'"),
    "option network": ("sample network=exakt", "'exact'"),
    "option logger": ("train logger=tensorbord", "'tensorboard'"),
    "option trainer": ("train trainer=gpuu", "'gpu'"),
    "option experiment": ("train experiment=moon", "'moons'"),
    "option likelihood": ("nll network=exact likelihood=odee", "'ode'"),
    "option number": ("train optim=5", "adam|adamw"),
    "option empty": ("train sde=", "subvp|ve|vp"),
    "option path": ("train data=foo/bar", "'foo/bar'"),
    "setting": ("train batchsize=3", "'batch_size'"),
    "setting dash": ("train batch-size=3", "'batch_size'"),
    "setting seed": ("train sed=3", "'seed'"),
    "setting of others": ("train steps=5", "encode, decode, evaluate"),
    "setting added": ("train +sed=1", "'seed'"),
    "setting removed": ("train ~batch_size", "batch_size"),
    "group removed": ("train ~sde", "sde"),
    "nested group": ("train optm.lr=1", "'optim.lr'"),
    "nested key": ("train trainer.max_step=3", "'trainer.max_steps'"),
    "nested key, joined": ("train sde.tmin=1", "'sde.t_min'"),
    "nested key, far": ("train optim.learning_rate=1", "optim.lr"),
    "nested key, added": ("train +optim.lrr=1", "'lr'"),
    "nested ema": ("train ema.decy=0.9", "'ema.decay'"),
    "nested likelihood": ("nll network=exact likelihood.probe=3", "'likelihood.probes'"),
    "key of another option": ("train sampler.eta=1", "sampler=ddim"),
    "key of another schedule": ("train sde=ve schedule.beta_min=1", "schedule=linear"),
    "key of a data set": ("sample ckpt={ckpt} data.nois=0", "'noise'"),
    "key not of this data": ("sample ckpt={ckpt} data.rot=x", "'rot'"),
    "key not of this sde": ("sample ckpt={ckpt} sde.tmin=1e-3", "'t_min'"),
    "key of the fixed sde": ("sample ckpt={ckpt} sde.schedule=linear", "sde.schedule"),
    "interpolation": ("sample network=exact n=${{foo}}", "'foo'"),
    # wrong types
    "batch_size text": ("train batch_size=abc", "whole number"),
    "batch_size fraction": ("train batch_size=1.5", "whole number"),
    "batch_size empty": ("train batch_size=", "batch_size= is empty"),
    "seed text": ("train seed=a", "seed must be a whole number"),
    "out number": ("train out=5", "out must be text"),
    "out empty": ("train out=", "out= is empty"),
    "ckpt empty": ("sample ckpt=", "ckpt= is empty"),
    "steps empty": ("sample network=exact steps=", "steps= is empty"),
    "n null": ("sample network=exact n=null", "n must be a whole number"),
    "n list": ("nll network=exact n=[1,2]", "n must be a whole number"),
    "lr text": ("train optim.lr=fast", "optim.lr must be a number"),
    "lr nan": ("train optim.lr=nan", "optim.lr must be a number"),
    "betas": ("train optim.betas=0.9", "a list"),
    "method": ("train optim.method=adamm", "'adam'"),
    "multipliers number": ("train network.multipliers=2", "a list"),
    "multipliers text": ("train network.multipliers=[a]", "whole number"),
    "sde an object": ("train sde.schedule=foo", "sde.schedule"),
    "precision": ("train trainer.precision=17", "32-true"),
    "precision near": ("train trainer.precision=bf16-mix", "'bf16-mixed'"),
    "strategy": ("train trainer.strategy=dpp", "ddp"),
    "accelerator": ("train trainer.accelerator=cpuu", "'cpu'"),
    "clip algorithm": ("train trainer.gradient_clip_algorithm=values", "'value'"),
    "profiler": ("train trainer.profiler=simpel", "'simple'"),
    "detect_anomaly": ("train trainer.detect_anomaly=foo", "true or false"),
    "devices text": ("train trainer.devices=abc", "auto"),
    "lightning's own": ("train +trainer.max_epochs=3", "trainer.max_steps"),
    "compile": ("train compile=maybe", "true or false"),
    "dry_run": ("train dry_run=perhaps", "true or false"),
    "resume_allow": ("train resume_allow=optim", "a list"),
    "t_min": ("sample ckpt={ckpt} sde.t_min=abc", "sde.t_min must be a number"),
    "weight": ("train loss.weight=likelyhood", "'likelihood'"),
    "variable": ("train sampler=heun sampler.variable=sigm", "'sigma'"),
    "device": ("sample network=exact device=gpu", "auto|cpu|cuda"),
    "dtype": ("sample network=exact dtype=float16", "float64"),
    "weights": ("sample ckpt={ckpt} weights=emma", "'ema'"),
    "last": ("sample network=exact last=stopp", "'stop'"),
    "split": ("nll network=exact split=tset", "'test'"),
    "mixture": ("sample network=exact data.name=fore", "'four'"),
    # out of range
    "batch_size 0": ("train batch_size=0", "at least 1"),
    "seed -1": ("train seed=-1", "at least 0"),
    "n -1": ("sample network=exact n=-1", "at least 1"),
    "steps 0": ("sample network=exact steps=0", "at least 1"),
    "devices 0": ("train trainer.devices=0", "at least 1"),
    "devices 9999": ("train trainer.devices=9999", "this machine has"),
    "devices of explain": ("explain network=exact devices=2", "one device"),
    "max_steps 0": ("train trainer.max_steps=0", "at least 1"),
    "max_steps -1": ("train trainer.max_steps=-1", "at least 1"),
    "lr -1": ("train optim.lr=-1", "lr must be above 0"),
    "ema 2": ("train ema.decay=2", "at most 1"),
    "checkpoint 0": ("train data=moons checkpoint.every=0", "at least 1"),
    "preview 0": ("train data=moons preview.n=0", "at least 1"),
    "beta_min -1": ("train schedule.beta_min=-1", "above 0"),
    "sigma_min 100": ("train schedule=geometric schedule.sigma_min=100", "sigma_max must be above"),
    "sde.t_min 2": ("train sde.t_min=2", "t_min must lie in"),
    "sde.t_min 0": ("train sde.t_min=0", "1e-5"),
    "sde.t_min of a ckpt": ("sample ckpt={ckpt} sde.t_min=2", "t_min must lie in"),
    "grid.t_min 1": ("sample network=exact grid.t_min=1", "t_min must lie in"),
    "eta 3": ("sample network=exact sampler=ddim sampler.eta=3", "eta must lie in"),
    "tol 2": ("sample network=exact sampler=rk45 sampler.tol=2", "tol must lie between"),
    "probes 0": ("nll network=exact likelihood.probes=0", "probes must be at least 1"),
    "likelihood tol 0": ("nll network=exact likelihood.tol=0", "tol must be above 0"),
    "tol 0 of rk45": ("nll network=exact likelihood.solver=rk45 likelihood.tol=0", "tol must lie between"),
    "dropout 1": ("train network.dropout=1", "dropout must lie in"),
    "data n 0": ("train data=moons data.n=0", "data.n=0"),
    # files
    "no run yet": ("sample", "diffcli train"),
    "ckpt": ("nll ckpt=no.ckpt", "no.ckpt"),
    "resume": ("train resume=missing", "missing"),
    "mnist": ("train data=mnist", "data.root"),
    "array unset": ("train data=array", "data=array needs data.file"),
    "array unset, exact": ("sample network=exact data=array", "data=array needs data.file"),
    "array unset, ckpt": ("nll ckpt={ckpt} data=array", "data=array needs data.file"),
    "folder unset": ("train data=image_folder", "data=image_folder needs data.root"),
    "array": ("train data=array data.file=missing.npy", "missing.npy"),
    "array no npy": ("train data=array data.file={files}/text.npy", "text.npy"),
    "array of 1 axis": ("train data=array data.file={files}/one.npy", "(N, *S)"),
    "folder": ("train data=image_folder data.root=nowhere", "data.root=nowhere"),
    "mixture file": ("sample network=exact network.file=missing.npz", "missing.npz"),
    "mixture shapes": ("sample network=exact network.file={files}/shapes.npz", "(K, d, d)"),
    "start": ("sample network=exact start=missing.npy", "missing.npy"),
    "start shape": ("sample network=exact start={files}/three.npy", "(2,)"),
    "start not finite": ("sample network=exact start={files}/nan.npy", "not finite"),
    "out a file": ("sample network=exact out={files}/text.npy", "is a file"),
    "out a run": ("sample network=exact out={run}", "overwrite=true"),
    # combinations
    "unet of points": ("train data=moons network=unet", "network=mlp"),
    "unet depth": ("train network.multipliers=[1,2,2,2,2]", "divisible by 16"),
    "mlp untrained": ("sample network=mlp", "network=exact"),
    "exact trained": ("train network=exact", "not trained"),
    "exact of moons": ("sample network=exact data=moons", "data=mixture"),
    "exact of other dims": ("nll network=exact network.file={files}/three.npz data=mixture", "(3,)"),
    "network of a ckpt": ("sample ckpt={ckpt} network=exact", "ckpt="),
    "prediction of a ckpt": ("sample ckpt={ckpt} prediction=eps", "prediction="),
    "prediction of exact": ("sample network=exact prediction=eps", "prediction="),
    "steps and nfe": ("sample network=exact steps=5 nfe=10", "steps=5 and nfe=10"),
    "nfe 1": ("sample network=exact nfe=1 sampler=dpm2", "nfe=2"),
    "nfe of a billion": ("sample network=exact nfe=1000000000", "at most 1000000"),
    "nfe too few for all": ("compare network=exact data=mixture samplers=[pndm,heun] nfe=[1]", "not one step"),
    "nfe of compare, a billion": ("compare network=exact data=mixture nfe=[5,1000000000]", "at most 1000000"),
    "predictor half": ("sample network=exact sampler=pc +sampler.predictor.eta=1", "must name a sampler"),
    "predictor null": ("sample network=exact sampler=pc sampler.predictor=null", "must name a sampler"),
    "predictor's setting twice": (
        "sample network=exact sampler=pc 'sampler.predictor=\"ddim eta=1 eta=0\"'",
        "eta is there twice",
    ),
    "nfe of rk45": ("sample network=exact nfe=10 sampler=rk45", "sampler.tol"),
    "prior": ("train schedule.beta_max=1", "beta_max"),
    "prior of ve": ("sample network=exact sde=ve schedule.sigma_max=0.1", "sigma_max"),
    "resume auto": ("train resume=auto", "out=DIR"),
    "values without -m": ("train seed=0,1", "-m seed=0,1"),
    "data of another shape": ("nll ckpt={ckpt} data=mixture data.name=line", "(1,)"),
    # sweeps
    "sweep option": ("train -m sde=vp,vee", "'ve'"),
    "sweep group": ("sample -m network=exact smapler=heun,ddim", "'sampler'"),
    "sweep value": ("sample -m network=exact n=0", "at least 1"),
    "sweep flag last": ("sample network=exact n=0 -m", "at least 1"),
    "sweep without a model": ("sample -m", "diffcli train"),
    "max_time": ("train trainer.max_time=foo", "DD:HH:MM:SS"),
    "logger missing": ("train logger=tensorboard", "pip install"),
    "logger mode": ("train logger=wandb logger.mode=onlin", "logger.mode"),
    "network shape": ("train data=moons network.shape=[3]", "[2]"),
    "classes -1": ("train network.classes=-1", "classes"),
    "classes that nothing feeds": ("train network.classes=10", "network.classes=10: training gives the network no"),
    "another coupling than the loss's": ("train loss=ot_flow coupling=independent", "loss=flow with coupling=ot"),
    "val file": ("train data=array data.file={files}/three.npy data.val_file=missing.npy network=mlp", "missing.npy"),
    "evaluate n 1": ("evaluate network=exact n=1", "at least 2"),
    "evaluate data n 1": ("evaluate network=exact data.n=1", "at least"),
}  # fmt: skip
if not torch.cuda.is_available():
    ROWS |= {"gpu": ("train trainer=gpu", "device=cpu"), "cuda": ("sample network=exact device=cuda", "device=cpu")}

# refused with a folder left behind, or not at all: what has to change is outside the command line


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.npy").write_text("hello")
    np.save(folder / "one.npy", np.zeros(4))
    np.save(folder / "three.npy", np.zeros((4, 3)))
    np.save(folder / "nan.npy", np.full((4, 2), np.nan))
    np.savez(folder / "shapes.npz", weights=np.ones(2) / 2, means=np.zeros((3, 2)), covs=np.zeros((3, 2, 2)))
    np.savez(folder / "three.npz", weights=np.ones(1), means=np.zeros((1, 3)), covs=np.eye(3)[None])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training of two steps."""
    from diffcli.cli import main

    path = tmp_path_factory.mktemp("runs") / "moons"
    tiny = "network.width=8 network.blocks=1 data.n=100 preview.every=0 trainer.max_steps=2"
    assert main(["train", "data=moons", *tiny.split(), f"out={path}"]) == 0
    return path


@pytest.fixture
def no_training(monkeypatch):
    """A row whose check is gone must fail here, not train or start processes; TensorBoard is not installed."""
    import lightning

    def fit(*args, **kwargs):
        raise AssertionError("the training began")

    def find_spec(name, *args):
        return None if name == "tensorboard" else real(name, *args)

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(lightning.Trainer, "fit", fit)


def on_disk(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def check(code: int, err: str, expected: str) -> None:
    """Code 2, one `error:` line that is all there is but for `try:`, and the expected words in it."""
    lines = err.splitlines()
    assert code == 2, err
    assert "Traceback" not in err
    assert [line.partition(": ")[0] for line in lines] in (["error"], ["error", "try"]), err
    assert expected in err
    assert len(lines[0]) < 300


@pytest.mark.parametrize(("line", "expected"), [pytest.param(*row, id=id_) for id_, row in ROWS.items()])
def test_wrong_line_is_one_sentence(line, expected, cli, files, run, no_training, tmp_path):
    before = on_disk(tmp_path) | on_disk(files) | on_disk(run)
    result = cli(*shlex.split(line.format(files=files, run=run, ckpt=run / "checkpoints" / "last.ckpt")))
    check(result.code, result.err, expected)
    assert on_disk(tmp_path) | on_disk(files) | on_disk(run) == before


@pytest.mark.parametrize("name", ["text.npy", ""])
def test_unreadable_checkpoint_is_code_3(name, cli, files, tmp_path):
    result = cli("sample", f"ckpt={files / name}")
    assert result.code == 3
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert not on_disk(tmp_path)


@pytest.mark.parametrize("words", ["sampler=sa_solver sampler.eta=1e200", "sampler=langevin sampler.gamma=1e200"])
def test_coefficients_beyond_floats_are_code_4(words, cli, tmp_path):
    result = cli("sample", "network=exact", "n=2", "steps=2", *words.split())
    assert result.code == 4
    assert result.err.startswith("error: a coefficient of the sampler")


def test_compare_goes_on_where_one_sampler_overflows(cli, tmp_path):
    words = 'samplers=[ddim,"sa_solver eta=1e200"]'
    result = cli("compare", "network=exact", "n=8", "endpoints=4", "nfe=[3]", words)
    assert result.code == 0, result.err
    assert "failed: sa_solver eta=1e200 at NFE 3: a coefficient of the sampler" in result.out
    assert "use ddim" in result.out


def test_other_jobs_of_a_sweep_still_run(cli, tmp_path):
    result = cli("sample", "-m", "network=exact", "n=2,0,3", "steps=1")
    assert result.code == 2
    assert result.err.count("error: ") == 1
    assert "n must be at least 1" in result.err
    (sweep,) = (tmp_path / "outputs" / "sample").iterdir()
    assert {p.name for p in sweep.iterdir()} == {"0", "1", "2", "multirun.yaml"}
    assert [p.name for p in (sweep / "1").iterdir()] == ["refused.json"], "why, for diffcli report"
    assert [np.load(sweep / job / "samples.npy").shape[0] for job in ("0", "2")] == [2, 3]


def test_folders_that_were_there_stay(cli, tmp_path):
    (tmp_path / "outputs").mkdir()
    assert cli("sample", "-m", "network=exact", "n=0").code == 2
    assert on_disk(tmp_path) == {tmp_path / "outputs"}


def test_typo_in_own_config_dir_is_named(cli, tmp_path):
    (tmp_path / "conf" / "sampler").mkdir(parents=True)
    (tmp_path / "conf" / "sampler" / "mine.yaml").write_text("# my own\n_target_: diffcli.diffusion.samplers.DDIM\n")
    result = cli("sample", "network=exact", "sampler=min", "--config-dir", tmp_path / "conf")
    check(result.code, result.err, "'mine'")


def test_debug_prints_the_trace(cli):
    result = cli("sample", "network=exact", "n=0", "debug=true")
    assert result.code == 2
    assert "Traceback" in result.err


def test_output_that_nobody_reads_is_no_failure(cli, monkeypatch):
    """`diffcli sample … | head -1`: nothing is said of it, by Hydra neither."""

    def say(_):
        raise BrokenPipeError

    monkeypatch.setattr("diffcli.commands.sample.say", say)
    result = cli("sample", "network=exact", "n=2", "steps=1", "dry_run=true")
    assert (result.code, result.err) == (0, "")


def process(tmp_path, *argv: str) -> tuple[subprocess.CompletedProcess, float]:
    """diffcli as a user starts it, and the seconds it took."""
    begun = time.monotonic()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "diffcli", *argv]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    return found, time.monotonic() - begun


@pytest.mark.parametrize("id_", ["group", "batch_size text", "array unset"])
def test_process_answers_in_seconds(id_, tmp_path):
    line, expected = ROWS[id_]
    found, seconds = process(tmp_path, *shlex.split(line))
    check(found.returncode, found.stderr, expected)
    assert seconds < SECONDS
    assert not on_disk(tmp_path)


@pytest.mark.parametrize("line", ["", "--help", "train --help", "sample -h", "--version"])
def test_help_needs_no_torch_and_less_than_a_second(line, tmp_path):
    found, seconds = process(tmp_path, *line.split())
    assert found.returncode == 0, found.stderr
    assert "diffcli" in found.stdout
    assert seconds < 1
    look = "print({'torch', 'hydra'} & {*sys.modules})"
    code = f"import sys; from diffcli.cli import main; main({line.split()}); {look}"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "set()"
