"""What is not finite stops all ranks before the optimiser step, says where it came from, and reaches no checkpoint."""

import json

import pytest
import torch

from diffcli import checkpoint
from diffcli.training.data import BatchOrder

TINY = (
    "network=mlp", "network.width=32", "network.blocks=1", "batch_size=20", "trainer.max_steps=12", "preview.every=0",
    "trainer.val_check_interval=1000", "trainer.log_every_n_steps=1", "checkpoint.every=1", "checkpoint.keep=20",
    "out=run",
)  # fmt: skip
TWO = ("trainer=ddp", "device=cpu", "devices=2")
RANK = "import os, torch\nrank = int(os.environ.get('RANK', 0))\nfrom diffcli.training.module import Steps, Training\n"
LOSS = """
real = Training.losses
def losses(self, batch, draw):
    loss, more = real(self, batch, draw)
    return (loss * float("nan") if draw.step == {batch} and rank == {rank} else loss), more
Training.losses = losses
"""
# the square root of 0 has a value, and no gradient
GRADIENT = """
real = Training.losses
def losses(self, batch, draw):
    loss, more = real(self, batch, draw)
    if draw.step == {batch} and rank == {rank}:
        loss = loss + (0 * dict(self.named_parameters())["denoiser.network.first.weight"]).sum().sqrt()
    return loss, more
Training.losses = losses
"""
WEIGHT = """
real = Training.training_step
def step(self, batch, index):
    if self.batches == {batch}:
        with torch.no_grad():
            dict(self.named_parameters())["denoiser.network.first.bias"][0] = float("inf")
    return real(self, batch, index)
Training.training_step = step
"""


BEHIND = "from diffcli.training.module import Steps\nSteps.lag = 1\n"  # as on a GPU: the host knows of a step during the next


def assert_stopped(run, tmp_path, step, *words):
    """Exit 4 with a sentence of these words; the last checkpoint is of the step before, and every one is finite."""
    assert run.wait() == 4, run.said
    assert "Traceback" not in run.said
    (said,) = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert f"not finite at step {step}" in said
    assert all(word in said for word in words), said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    saved = [checkpoint.read(path) for path in (tmp_path / "run/checkpoints").glob("*.ckpt")]
    assert max(content["global_step"] for content in saved) == step
    assert all(torch.isfinite(v).all() for content in saved for v in content["state_dict"].values())


EXPECTED = "exit 4 before the step, with the step, the cause and the rank; every checkpoint finite"


ITEM = """
real = Training.items
class Bad:
    def __init__(self, items): self.items = items
    def __len__(self): return len(self.items)
    def held(self): return None
    def __getitems__(self, index):
        x, y = self.items.__getitems__(index)
        return torch.where(torch.tensor([i == 61 for i in index])[:, None], float("nan"), x), y
Training.items = lambda self, split: Bad(real(self, split)) if split == "train" else real(self, split)
"""


LAGS = pytest.mark.parametrize("lag", ["", pytest.param(BEHIND, marks=pytest.mark.heavy)], ids=["at once", "behind"])


@LAGS
@pytest.mark.parametrize("words", [(), pytest.param(TWO, marks=pytest.mark.heavy)])
def test_an_item_that_is_not_a_number(start, tmp_path, injected, words, lag):
    order, each = BatchOrder(200, 20 * (2 if words else 1), seed=0), 20
    step, index = next((k, index) for k, index in enumerate(order) if 61 in index)
    said = ["item 61", *([f"rank {index.index(61) // each}"] if words else [])]
    run = start("train", "data=moons", "data.n=200", *TINY, *words, faults=RANK + ITEM + lag)
    assert_stopped(run, tmp_path, step, *said)
    injected("NaN in the data", EXPECTED)


@LAGS
@pytest.mark.parametrize(
    ("fault", "words", "said"),
    [
        (LOSS, ("trainer.accumulate_grad_batches=2",), ("the loss",)),
        (GRADIENT, (), ("the gradient of denoiser.network.first.weight",)),
        (WEIGHT, (), ("the weight denoiser.network.first.bias",)),
    ],
    ids=["loss", "gradient", "weight"],
)
def test_one_process(start, tmp_path, injected, request, fault, words, said, lag):
    batch = 7
    run = start("train", "data=moons", *TINY, *words, faults=RANK + fault.format(batch=batch, rank=0) + lag)
    assert_stopped(run, tmp_path, 3 if words else batch, *said)
    injected(f"NaN in a {request.node.callspec.id.partition('-')[0]}", EXPECTED)


@pytest.mark.heavy
@LAGS
@pytest.mark.parametrize(
    ("fault", "words", "said"),
    [
        (LOSS, ("trainer.accumulate_grad_batches=2",), ("the loss", "rank 1")),
        (GRADIENT, (), ("the gradient of denoiser.network.first.weight", "rank 1")),
    ],
    ids=["loss", "gradient"],
)
def test_one_rank_of_two(start, tmp_path, injected, request, fault, words, said, lag):
    run = start("train", "data=moons", *TINY, *TWO, *words, faults=RANK + fault.format(batch=5, rank=1) + lag)
    assert_stopped(run, tmp_path, 2 if words else 5, *said)
    injected(f"NaN in the {request.node.callspec.id.partition('-')[0]} of one rank", EXPECTED)


STOCK = """
import torch, lightning as L
class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch[0]).square().mean()
        return loss * float("nan") if index == 3 else loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=8)
quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
L.Trainer(max_epochs=1, default_root_dir=".", accelerator="cpu", **quiet).fit(Module(), data)
"""


def test_lightning_alone_saves_what_is_not_finite(start, tmp_path, injected):
    run = start("--version", faults=STOCK)
    assert run.wait() == 0, run.said
    (path,) = tmp_path.glob("**/*.ckpt")
    assert torch.load(path)["state_dict"]["layer.weight"].isnan().all()
    stock = "Lightning: trains on, saves NaN, exit 0"
    injected("NaN in a loss", EXPECTED, n=0, survived=0, stock=stock)
