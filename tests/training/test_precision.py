"""A low precision holds for the network, in a step, and nowhere else."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from diffcli.training.precision import narrow


def trainer_and_module(precision: str = "bf16-mixed", full_precision: bool = False):
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = SimpleNamespace(network=nn.Linear(4, 4))
    module = SimpleNamespace(model=model, loss=SimpleNamespace(full_precision=full_precision))
    narrow(trainer, module)
    return trainer.strategy.precision_plugin, model.network


@pytest.mark.parametrize("context", ["train_step_context", "val_step_context"])
def test_the_network_alone_is_in_low_precision(context):
    plugin, network = trainer_and_module()
    x = torch.randn(3, 4)
    assert network(x).dtype == torch.float32
    with getattr(plugin, context)():
        low, outside = network(x), x @ x.T
    assert low.dtype == torch.bfloat16
    assert outside.dtype == torch.float32
    assert torch.equal(outside, x @ x.T)
    low.float().square().sum().backward()
    assert network.weight.grad.dtype == torch.float32
    with pytest.raises(KeyError), getattr(plugin, context)():
        raise KeyError
    assert network(x).dtype == torch.float32  # after an exception too


@pytest.mark.parametrize(("precision", "full"), [("32-true", False), ("bf16-mixed", True)])
def test_full_precision_stays(precision, full):
    plugin, network = trainer_and_module(precision, full)
    with plugin.train_step_context():
        assert network(torch.randn(3, 4)).dtype == torch.float32


def test_a_training_does_so(cli, tmp_path, monkeypatch):
    """What its loss sees: a network's products in bfloat16, its own in float32."""
    from diffcli.diffusion.loss.dsm import DSM
    from diffcli.networks.mlp import MLP

    seen, forward, evaluate = set(), DSM.forward, MLP.forward

    def loss(self, denoiser, x0, draw, **cond):
        seen.add(("loss", (x0 @ x0.T).dtype))
        return forward(self, denoiser, x0, draw, **cond)

    def network(self, x, *args, **kwargs):
        out = evaluate(self, x, *args, **kwargs)
        seen.add(("network", (out @ out.T).dtype))
        return out

    monkeypatch.setattr(DSM, "forward", loss)
    monkeypatch.setattr(MLP, "forward", network)
    options = ["data=moons", "network=mlp", "network.width=8", "trainer.max_steps=2", "preview.every=0"]
    done = cli("train", *options, "trainer.precision=bf16-mixed", "trainer.val_check_interval=2", "out=t")
    assert done.code == 0, done.err
    assert seen == {("loss", torch.float32), ("network", torch.bfloat16)}
