"""metrics.csv and the process beside it: what is logged, in which order, and that a training never waits for it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffcli.training import loggers
from diffcli.training.loggers import MetricsCSV, Outside, wandb_logger

STAND_IN = Path(__file__).parents[1] / "faults" / "wandb_stand_in.py"


@pytest.fixture
def tale(tmp_path, monkeypatch):
    """Puts the stand-in in wandb's place; what it was told so far, as (what, entry) pairs."""
    (tmp_path / "modules").mkdir()
    shutil.copy(STAND_IN, tmp_path / "modules" / "wandb.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("TALE", str(tmp_path / "tale"))
    monkeypatch.delenv("FAULT", raising=False)
    file = tmp_path / "tale"
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def of(told, what):
    return [entry for entry in told if entry["what"] == what]


def picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def start(folder, **options):
    folder.mkdir(exist_ok=True)
    return wandb_logger(str(folder), mode="offline", **options)


def test_everything_is_logged_in_order(tmp_path, tale, capfd):
    logger = start(tmp_path / "run", group="g", tags=["a"])
    logger.log_hyperparams({"sde": {"beta": 1.0}, "path": Path("x")})
    for step in range(5):
        logger.log_metrics({"loss": step / 2, "nan": float("nan")}, step)
        if step == 2:
            picture(tmp_path / "run/samples/step0000002.png")
    picture(tmp_path / "run/denoised.png")
    logger.finalize("success")
    told = tale()
    assert of(told, "config")[0]["config"] == {"sde": {"beta": 1.0}, "path": "x"}
    rows = [entry["values"] for entry in of(told, "log")]
    assert [row["loss"] for row in rows if "loss" in row] == [0, 0.5, 1, 1.5, 2]
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 2, 3, 2, 4, 4]
    assert [Path(entry["path"]).name for entry in of(told, "image")] == ["step0000002.png", "denoised.png"]
    assert told[-1]["what"] == "finish"
    assert told[-1]["code"] == 0
    assert len({entry["pid"] for entry in told}) == 1
    assert capfd.readouterr().err == ""


def test_rows_are_there_however_a_resumed_run_dies(tmp_path, monkeypatch):
    """Those that stay are written anew; one that ends in the middle of it has the old file."""
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    for step in range(4):
        logger.log_metrics({"loss": step / 2}, step)
    before = path.read_text()

    def dying(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loggers.csv.DictWriter, "writerows", dying)
        MetricsCSV(path, (3, 3))
    assert path.read_text() == before
    MetricsCSV(path, (3, 3))
    assert path.read_text().splitlines() == before.splitlines()[:-1]
    assert list(tmp_path.iterdir()) == [path]


def test_an_id_that_was_not_written_is_made_anew(tmp_path, tale):
    """A file without it is what a run leaves that is killed between its two halves."""
    (tmp_path / "run/wandb").mkdir(parents=True)
    (tmp_path / "run/wandb/run-id").touch()
    for _ in range(2):
        logger = start(tmp_path / "run")
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
    first, second = (entry["id"] for entry in of(tale(), "init offline"))
    assert first and first == second


def test_a_resumed_run_has_its_id_and_does_not_log_its_pictures_again(tmp_path, tale):
    for i in range(2):
        logger = start(tmp_path / "run")
        logger.log_hyperparams({})
        picture(tmp_path / f"run/samples/step000000{i}.png")
        logger.log_metrics({"loss": 1.0}, i)
        logger.finalize("success")
    other = start(tmp_path / "other")
    other.log_metrics({"loss": 1.0}, 0)
    other.finalize("success")
    ids = [entry["id"] for entry in of(tale(), "init offline")]
    assert ids[0] == ids[1] != ids[2]
    assert [Path(entry["path"]).name for entry in of(tale(), "image")] == ["step0000000.png", "step0000001.png"]


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("failed", 1), (None, 1)])
def test_it_says_how_the_training_ended(tmp_path, tale, status, code):
    logger = start(tmp_path / "run")
    logger.log_metrics({"loss": 1.0}, 0)
    if status is None:  # the training was killed: its end of the pipe is closed, and nothing said
        logger._process.stdin.close()
        logger._process.wait(60)
    else:
        logger.finalize(status)
    assert of(tale(), "finish")[0]["code"] == code


def test_nothing_starts_before_there_is_something_to_log(tmp_path, tale):
    logger = start(tmp_path / "run")
    logger.finalize("failed")
    assert logger._process is None
    assert tale() == []


def test_what_is_not_taken_is_kept_up_to_a_limit(tmp_path, tale, monkeypatch, capfd):
    monkeypatch.setenv("FAULT", "hang import")
    monkeypatch.setattr(loggers, "LIMIT", 100_000)
    logger = start(tmp_path / "run")
    for step in range(20_000):
        logger.log_metrics({"loss": 1.0, "more": "x" * 50}, step)
    assert logger._process.returncode is not None
    logger.finalize("success")
    err = capfd.readouterr().err
    assert err.count("warning: ") == 1
    assert "takes nothing any more" in err


@pytest.mark.parametrize(
    ("key", "host", "mode"), [(None, None, "offline"), ("k", None, "online"), (None, "api.wandb.ai", "online")]
)
def test_online_where_there_is_a_key(tmp_path, tale, monkeypatch, key, host, mode):
    """In the environment, or where `wandb login` writes it."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if host:
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'a' * 40}\n")
        (tmp_path / "netrc").chmod(0o600)
    assert wandb_logger(str(tmp_path)).options["mode"] == mode
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_logger(str(tmp_path)).options["mode"] == "offline"
    assert wandb_logger(str(tmp_path), mode="online").options["mode"] == "online"


@pytest.mark.slow
def test_tensorboard_has_figures_pictures_and_settings(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.tensorboard_logger(str(tmp_path))
    assert isinstance(logger, Outside)
    logger.log_hyperparams({"sde": {"beta": 1.0}, "none": None})
    for step in range(3):
        logger.log_metrics({"loss": step / 2}, step)
    picture(tmp_path / "samples/step0000002.png")
    logger.finalize("success")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(0, 0), (1, 0.5), (2, 1)]
    assert [event.step for event in found.Images("samples")] == [2]
    settings = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"sde/beta" in settings
