"""Weight averages, data order and learning rate: each a function of the step."""

import math
from types import SimpleNamespace

import pytest
import torch

from diffcli.training.data import BatchOrder
from diffcli.training.ema import EMA
from diffcli.training.ema_profile import Constant
from diffcli.training.optim import Optim


def test_average_is_the_recursion_in_optimiser_steps():
    """Batches within an accumulation, where global_step stands still, do not count."""
    module = torch.nn.Linear(2, 1)
    module.device = torch.device("cpu")
    ema = EMA(Constant(0.9))
    ema.on_fit_start(None, module)
    expected = module.weight.detach().clone()
    for batch in range(1, 201):
        step = batch // 4
        with torch.no_grad():
            module.weight.fill_(math.sin(step))
        ema.on_train_batch_end(SimpleNamespace(global_step=step), module)
        if batch % 4 == 0:
            decay = min(0.9, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * math.sin(step)
    assert torch.allclose(ema.average["weight"], expected, atol=1e-6)
    raw = module.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied(module):
        assert torch.allclose(module.weight, expected, atol=1e-6)
        raise KeyError
    assert torch.equal(module.weight, raw)  # back in place after an exception too


@pytest.mark.parametrize(("n", "batch_size", "world"), [(23, 5, 1), (23, 5, 3), (7, 10, 2), (16, 4, 2)])
def test_every_item_comes_once_an_epoch(n, batch_size, world):
    """The ranks' batches, put together in order, are one stream of permutations; a later start, of others too, goes on in it."""
    streams = [iter(BatchOrder(n, batch_size, seed=3, rank=r, world=world)) for r in range(world)]
    stream = [i for _ in range(60) for s in streams for i in next(s)]
    epochs = [stream[k : k + n] for k in range(0, len(stream) - n, n)]
    assert all(sorted(e) == list(range(n)) for e in epochs)
    assert n < 8 or len({tuple(e) for e in epochs}) == len(epochs)
    for size, ranks, taken in ((batch_size, world, 17), (3, 1, 17), (2, 4, 17)):
        start = taken * batch_size * world
        others = [iter(BatchOrder(n, size, seed=3, rank=r, world=ranks, start=start)) for r in range(ranks)]
        late = [i for _ in range(9) for s in others for i in next(s)]
        assert late == stream[start : start + len(late)]
    assert next(iter(BatchOrder(n, batch_size, seed=4))) != next(iter(BatchOrder(n, batch_size, seed=3)))


def test_learning_rate_rises_and_falls():
    optim = Optim(lr=0.1, warmup=10)
    assert optim.rate(0, 1000) == pytest.approx(0.01)
    assert optim.rate(9, 1000) == pytest.approx(0.1, rel=1e-3)
    assert optim.rate(500, 1000) == pytest.approx(0.05)
    assert optim.rate(1000, 1000) == pytest.approx(0, abs=1e-12)
    assert Optim(lr=0.1, warmup=0, decay="none").rate(999, 1000) == 0.1
