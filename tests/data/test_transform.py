import math

import pytest
import torch

from diffcli.data.transform import Identity, Levels
from diffcli.errors import UsageError

TRANSFORMS = [Identity(), Levels(2), Levels(17), Levels(256)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: f"{type(t).__name__}-{t.levels}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decode_undoes_encode(transform, dtype):
    x = torch.linspace(-3, 300, 1000, dtype=dtype)
    torch.testing.assert_close(
        transform.decode(transform.encode(x)), x, rtol=0, atol=1e-4 if dtype.itemsize == 4 else 1e-12
    )


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: f"{type(t).__name__}-{t.levels}")
def test_log_jacobian_is_the_derivative_of_encode(transform):
    x = torch.tensor([3.0], dtype=torch.float64)
    slope = (transform.encode(x + 0.5) - transform.encode(x - 0.5)).item()
    assert math.log(slope) == pytest.approx(transform.log_jacobian, abs=1e-13)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_tile_the_interval(levels):
    """Level k takes [-1 + 2k/N, -1 + 2(k+1)/N): the first starts at -1, the last ends at 1, centres are half-way."""
    k = torch.arange(levels, dtype=torch.float64)
    low, high, centre = (Levels(levels).encode(k, u) for u in (0.0, 1.0, None))
    assert low[0].item() == -1 and high[-1].item() == pytest.approx(1, abs=1e-15)
    torch.testing.assert_close(high[:-1], low[1:], rtol=0, atol=1e-15)
    torch.testing.assert_close(centre, (low + high) / 2, rtol=0, atol=1e-15)


def test_levels_cost_seven_bits_for_pixels():
    assert -Levels(256).log_jacobian / math.log(2) == pytest.approx(7, abs=1e-14)


def test_dequantised_pixels_decode_to_their_offset_from_the_centre():
    k, u = torch.arange(256, dtype=torch.float64), torch.rand(256, dtype=torch.float64)
    torch.testing.assert_close(Levels(256).decode(Levels(256).encode(k, u)), k + u - 0.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: f"{type(t).__name__}-{t.levels}")
def test_only_float64_stays_float64(transform):
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float32):
        assert transform.encode(torch.ones(2).to(dtype), torch.rand(2, dtype=torch.float64)).dtype == torch.float32
    assert transform.encode(torch.ones(2).double(), torch.rand(2)).dtype == torch.float64


def test_integers_encode_as_their_floats():
    k = torch.arange(256)
    assert torch.equal(Levels(256).encode(k.to(torch.uint8)), Levels(256).encode(k.float()))


def test_fewer_than_two_levels_are_refused():
    with pytest.raises(UsageError, match="at least 2 levels, not 1"):
        Levels(1)
