"""Signals to one process or to all, in a step or in a validation, and the time limit: saved, stopped, and gone on with."""

import csv
import json
import signal

import pytest
import torch

from diffcli import checkpoint
from diffcli.commands.settings import seconds
from diffcli.errors import UsageError

STEPS = 16
TINY = (
    "data=moons", "network=mlp", "network.width=32", "network.blocks=1", "batch_size=64", f"trainer.max_steps={STEPS}",
    "preview.every=0", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "checkpoint.every=1000",
)  # fmt: skip
TWO = ("trainer=ddp", "device=cpu", "devices=2")

# at a batch of the training, or of the validation, a rank (or the whole group) gets a signal
AT = """
import os, signal
from diffcli.training.module import Steps
rank, done = int(os.environ.get("RANK", 0)), []
def send():
    if rank == {rank} and not done:
        done.append(1)
        os.killpg(os.getpgid(0), {signum}) if {group} else os.kill(os.getpid(), {signum})
training_step, validation_step = Steps.training_step, Steps.validation_step
def step(self, batch, index):
    if {batch} == self.batches and not {validation}:
        send()
    return training_step(self, batch, index)
def validate(self, batch, index):
    if {validation} and self.trainer.global_step == 8 and index == 2:
        send()
    return validation_step(self, batch, index)
Steps.training_step, Steps.validation_step = step, validate
"""


def fault(signum, validation=False, rank=0, group=False, batch=5):
    return AT.format(signum=int(signum), validation=validation, rank=rank, group=group, batch=batch)


def record(folder):
    return json.loads((folder / "run/run.json").read_text())


def last(folder):
    return checkpoint.read(folder / "run/checkpoints/last.ckpt")


def rows(folder):
    with (folder / "run/metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
            for row in csv.DictReader(file)
        ]


def assert_equal(found, expected):
    for part in ("state_dict", "ema"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][name]) for name, value in found[part].items())
    assert found["global_step"] == expected["global_step"]


def uninterrupted_of(start_in, folder, *words):
    whole = start_in(folder, "train", *TINY, *words, "out=run")
    assert whole.wait() == 0, whole.said
    return last(folder), rows(folder)


@pytest.fixture(scope="module")
def uninterrupted(start_in, tmp_path_factory):
    """The last checkpoint and the metrics of a run that nothing happened to."""
    return uninterrupted_of(start_in, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def uninterrupted_two(start_in, tmp_path_factory):
    return uninterrupted_of(start_in, tmp_path_factory.mktemp("two"), *TWO)


def assert_saved_and_goes_on(start, tmp_path, uninterrupted, step, *words):
    found = record(tmp_path)
    assert (found["status"], found["steps"]) == ("stopped", step)
    assert last(tmp_path)["global_step"] == step
    rest = start("train", *TINY, *words, "out=run", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(last(tmp_path), uninterrupted[0])
    assert rows(tmp_path) == uninterrupted[1]  # each once, and the figures of the validation that was broken off


EXPECTED = "saved at the step's end, exit 128+n on all; going on gives the same weights and metrics, bit for bit"


@pytest.mark.parametrize(
    ("signum", "validation", "words"),
    [
        (signal.SIGTERM, False, ()),
        (signal.SIGINT, True, ()),
        pytest.param(signal.SIGTERM, False, ("trainer.accumulate_grad_batches=2",), marks=pytest.mark.heavy),
        pytest.param(signal.SIGTERM, True, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGINT, False, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGUSR1, False, (), marks=pytest.mark.heavy),
        pytest.param(signal.SIGUSR1, True, ("workers=1",), marks=pytest.mark.heavy),
        pytest.param(signal.SIGHUP, False, (), marks=pytest.mark.heavy),
    ],
)
def test_one_process(start, start_in, tmp_path, tmp_path_factory, injected, request, signum, validation, words):
    if words:
        whole = uninterrupted_of(start_in, tmp_path_factory.mktemp("whole"), *words)
    else:
        whole = request.getfixturevalue("uninterrupted")
    run = start("train", *TINY, *words, "out=run", faults=fault(signum, validation, group="workers=1" in words))
    assert run.wait() == 128 + signum, run.said
    assert "Traceback" not in run.said
    step = 8 if validation else 3 if "trainer.accumulate_grad_batches=2" in words else 6
    assert_saved_and_goes_on(start, tmp_path, whole, step, *words)
    injected("a signal in a " + ("validation" if validation else "step"), EXPECTED)


TO = {"parent": {}, "child": {"rank": 1}, "group": {"group": True}}
MOMENTS = [(to, validation) for to in TO for validation in (False, True)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("to", "validation", "signum"),
    [(*moment, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[i % 3]) for i, moment in enumerate(MOMENTS)],
)
def test_two_processes(start, tmp_path, injected, uninterrupted_two, to, validation, signum):
    run = start("train", *TINY, *TWO, "out=run", faults=fault(signum, validation, **TO[to]))
    assert run.wait() == 128 + signum, run.said
    assert "Traceback" not in run.said
    step = 8 if validation else 6
    assert last(tmp_path)["global_step"] == record(tmp_path)["steps"] == step
    if to == "child":  # whose signal rank 0 knows of by agreement alone
        assert_saved_and_goes_on(start, tmp_path, uninterrupted_two, step, *TWO)
    injected(f"a signal to the {to} of two processes in a " + ("validation" if validation else "step"), EXPECTED)


SLOW = """
import time
from diffcli.training.module import Steps
training_step = Steps.training_step
def step(self, batch, index):
    if self.batches == 5:
        open("there", "w").close()
        time.sleep(60)
    return training_step(self, batch, index)
Steps.training_step = step
"""


@pytest.mark.parametrize("words", [(), pytest.param(TWO, marks=pytest.mark.heavy)])
def test_a_second_interrupt_stops_at_once(start, tmp_path, injected, words):
    """In the middle of a step that would take a minute; the last good checkpoint stays."""
    run = start("train", *TINY, *words, "checkpoint.every=2", "out=run", faults=SLOW)
    run.until(lambda: (tmp_path / "there").exists())
    run.kill(signal.SIGINT, group=True)
    run.until(lambda: "saving after this step" in run.said)
    run.kill(signal.SIGINT, group=True)
    assert run.wait() == 130, run.said
    assert "Traceback" not in run.said
    assert record(tmp_path)["status"] == "interrupted"
    assert last(tmp_path)["global_step"] == 4
    injected("a second Ctrl-C", "stops at once with 130; the last checkpoint stays")


SETUP = """
import os, signal
from diffcli.training.module import Steps
train_dataloader = Steps.train_dataloader
def loader(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return train_dataloader(self)
Steps.train_dataloader = loader
"""
PREVIEW = """
import os, signal
from diffcli.training.preview import Preview
asked, look = [], Preview._look
def see(self, *args):
    asked.append(1)
    if len(asked) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(asked) < 5, "drawn to its end"
    look(self, *args)
Preview._look = see
"""


@pytest.mark.parametrize(
    ("name", "faults", "words", "step"),
    [pytest.param("set-up", SETUP, (), 1, marks=pytest.mark.heavy), ("preview", PREVIEW, ("preview.every=2",), 3)],
    ids=["set-up", "preview"],
)
def test_before_the_first_step_and_in_a_preview(start, tmp_path, injected, name, faults, words, step):
    run = start("train", *TINY, *words, "out=run", faults=faults)
    assert run.wait() == 143, run.said
    assert last(tmp_path)["global_step"] == step
    assert record(tmp_path)["status"] == "stopped"
    assert not list((tmp_path / "run").glob("samples/*"))
    injected(f"a signal in the {name}", "saved after the next step, exit 128+n")


CLOCK = """
import time
from diffcli.training.module import Steps
real, steps = time.monotonic, [0]
time.monotonic = lambda: real() + {seconds} * steps[0]
training_step = Steps.training_step
def step(self, batch, index):
    steps[0] += 1
    return training_step(self, batch, index)
Steps.training_step = step
"""


def test_the_time_limit_stops_and_the_run_goes_on(start, tmp_path, uninterrupted):
    """Each step takes half an hour, of the clock that is asked."""
    run = start("train", *TINY, "trainer.max_time=00:02:10:00", "out=run", faults=CLOCK.format(seconds=1800))
    assert run.wait() == 0, run.said
    assert "resume=auto" in run.said
    assert_saved_and_goes_on(start, tmp_path, uninterrupted, 5)


BEHIND = "from diffcli.training.module import Steps\nSteps.lag = 1\n"  # as on a GPU: the host knows of a step during the next


@pytest.mark.parametrize(
    ("name", "ranks", "faults", "words", "code", "step"),
    [
        ("signal in a step", TWO, fault(signal.SIGTERM, rank=1), (), 143, 7),
        ("signal in a validation", (), fault(signal.SIGINT, validation=True), (), 130, 8),
        ("signal in a step", (), fault(signal.SIGTERM, batch=STEPS - 1), (), 143, STEPS),
        ("time limit", (), CLOCK.format(seconds=1800), ("trainer.max_time=00:02:10:00",), 0, 6),
    ],
    ids=["step", "validation", "last step", "limit"],
)
@pytest.mark.heavy
def test_a_step_behind(start, tmp_path, request, name, ranks, faults, words, code, step, injected):
    """It stops one step later, and loses none."""
    whole = request.getfixturevalue("uninterrupted_two" if ranks else "uninterrupted")
    run = start("train", *TINY, *ranks, *words, "out=run", faults=faults + BEHIND)
    assert run.wait() == code, run.said
    assert "Traceback" not in run.said
    if step < STEPS:
        assert_saved_and_goes_on(start, tmp_path, whole, step, *ranks)
    else:  # at its end, without the last validation
        assert record(tmp_path)["status"] == "finished"
        assert_equal(last(tmp_path), whole[0])
        assert rows(tmp_path) == whole[1][:-1]
    injected(f"a {name}", EXPECTED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:00:00:05", 5), ("2:01:00:00", 176400), ("00:48:00:00", 172800), ("soon", None), ("3600", None),
        ("00:10:00", None), ("00:00:00:00", None), ("-1:00:00:00", None), ("00:00:00:1.5", None),
    ],
)  # fmt: skip
def test_a_time_limit_is_days_hours_minutes_seconds(text, expected):
    if expected is None:
        with pytest.raises(UsageError, match="DD:HH:MM:SS"):
            seconds(text)
    else:
        assert seconds(text) == expected


@pytest.mark.parametrize(
    ("lag", "expected"), [("", list(range(2, 17, 2))), pytest.param(BEHIND, [3, 6, 10, 14], marks=pytest.mark.heavy)]
)
def test_checkpoints_by_the_clock(start, tmp_path, lag, expected):
    """Six minutes a step, a checkpoint each ten minutes: every second step.

    Read a step behind it is every third, and the next one where a validation comes between.
    """
    words = ("checkpoint.minutes=10", "checkpoint.keep=99")
    run = start("train", *TINY, *words, "out=run", faults=CLOCK.format(seconds=360) + lag)
    assert run.wait() == 0, run.said
    saved = sorted(int(p.stem[4:]) for p in (tmp_path / "run/checkpoints").glob("step*.ckpt"))
    assert saved == expected


RAISE = """
from diffcli.training.module import Steps
validation_step = Steps.validation_step
def validate(self, batch, index):
    if self.trainer.global_step == 8 and index == 2:
        raise RuntimeError("injected")
    return validation_step(self, batch, index)
Steps.validation_step = validate
"""


RAW = "the checkpoint has the raw weights and the averages; going on gives the same weights"


def test_an_exception_in_a_validation_leaves_the_raw_weights(start, tmp_path, injected, uninterrupted):
    run = start("train", *TINY, "checkpoint.every=4", "out=run", faults=RAISE)
    assert run.wait() == 1, run.said
    assert "Traceback" not in run.said
    assert last(tmp_path)["global_step"] == 8
    rest = start("train", *TINY, "checkpoint.every=4", "out=run", "resume=auto")
    assert rest.wait() == 0, rest.said
    assert_equal(last(tmp_path), uninterrupted[0])
    injected("an exception in a validation", RAW)


STOCK = """
import os, signal, torch, lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        if self.trainer.global_step == 5 and not {validation}:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch, index):
        raise RuntimeError("injected")
    def on_train_batch_end(self, *_):
        torch.save(self.layer.weight.detach().clone(), "raw.pt")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
callbacks = [EMAWeightAveraging(decay=0.9), ModelCheckpoint(".", filename="on", save_on_exception=True)]
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=8)
trainer = L.Trainer(
    max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    default_root_dir=".", accelerator="cpu", callbacks=callbacks if {validation} else [],
)
try:
    trainer.fit(Module(), data, data if {validation} else None)
except RuntimeError:
    pass
"""


def test_lightning_alone_saves_nothing_at_a_signal(start, tmp_path, injected):
    run = start("--version", faults=STOCK.format(validation=False))
    assert run.wait() == 0, run.said  # as if it were done
    assert (tmp_path / "raw.pt").exists()
    assert not list(tmp_path.glob("**/*.ckpt"))
    injected("a signal in a step", EXPECTED, n=0, survived=0, stock="Lightning at SIGTERM: no checkpoint, and exit 0")


def test_lightnings_averages_take_the_place_of_the_weights(start, tmp_path, injected):
    """EMAWeightAveraging keeps the averages under state_dict and the weights under current_model_state."""
    run = start("--version", faults=STOCK.format(validation=True))
    assert run.wait() == 0, run.said
    found, raw = torch.load(tmp_path / "on.ckpt"), torch.load(tmp_path / "raw.pt")
    assert torch.equal(found["state_dict"]["layer.weight"], raw)
    assert not torch.equal(found["current_model_state"]["layer.weight"], raw)
    stock = "Lightning's EMAWeightAveraging: weights and averages change places in the checkpoint"
    injected("an exception in a validation", RAW, n=0, survived=0, stock=stock)
