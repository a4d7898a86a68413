"""A pair problem whose answer is known: the target is its input plus noise, so x0_hat(x_t | input) is that of a Gaussian."""

import pytest
import torch
from torch import nn

from diffcli.diffusion.loss import DSM
from diffcli.diffusion.prediction import EDM
from diffcli.diffusion.schedule import Linear
from diffcli.diffusion.sde import VP
from diffcli.networks.concatenated import Concatenated
from diffcli.randomness import Draw

S = 0.4  # standard deviation of the target about its input


class Pixels(nn.Module):
    """The same small perceptron at each pixel, told c_noise."""

    def __init__(self, channels=3, width=48):
        super().__init__()
        first, last = nn.Conv2d(channels + 1, width, 1), nn.Conv2d(width, channels, 1)
        self.layers = nn.Sequential(first, nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), last)

    def forward(self, x, c_noise):
        return self.layers(torch.cat([x, c_noise.view(-1, 1, 1, 1).expand_as(x[:, :1])], 1))


def batch(i, n=64):
    draw = Draw(7, i, 0)
    image = draw.normal("image", (n, 1, 4, 4))
    return image, image + S * draw.normal("target", image.shape), draw


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    denoiser = EDM(VP(Linear()), Concatenated(Pixels(), (1, 4, 4)), sigma_data=(1 + S**2) ** 0.5)
    loss = DSM("v")  # of weight at every level
    loss.setup(denoiser, None)
    optim = torch.optim.Adam(denoiser.parameters(), lr=0.01)
    for i in range(400):
        for group in optim.param_groups:
            group["lr"] = 0.01 * (1 - i / 400)
        image, x0, draw = batch(i)
        image[draw.uniform("drop", (len(x0),)) < 0.4] = torch.nan
        optim.zero_grad()
        loss(denoiser, x0, draw, image=image).mean().backward()
        optim.step()
    return denoiser.eval().requires_grad_(False)


def exact(xt, alpha, sigma, mean, var):
    return mean + var * alpha / (alpha**2 * var + sigma**2) * (xt - alpha * mean)


@pytest.mark.parametrize("t", [0.2, 0.4, 0.7])
def test_x0_hat_is_the_mean_given_the_image(learned, t):
    """And without one the mean of all targets, N(0, 1 + s^2)."""
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = learned.sde.alpha(t).float(), learned.sde.sigma(t).float()
    image, x0, draw = batch("test", 512)
    xt = alpha * x0 + sigma * draw.normal("eps", x0.shape)
    known, unknown = exact(xt, alpha, sigma, image, S**2), exact(xt, alpha, sigma, 0.0, 1 + S**2)

    def off(found, truth):
        return (found - truth).square().mean().sqrt()

    apart = off(known, unknown)
    assert off(learned(xt, t, image=image), known) < 0.3 * apart
    assert off(learned(xt, t), unknown) < 0.3 * apart
    assert torch.equal(learned(xt, t), learned(xt, t, image=torch.full_like(image, torch.nan)))


def test_images_of_others_raise_the_loss(learned):
    loss, (image, x0, _) = DSM("v"), batch("test", 512)
    loss.setup(learned, None)
    own, other, none = (
        loss(learned, x0, Draw(0, "val", 0), **given) for given in ({"image": image}, {"image": image.roll(1, 0)}, {})
    )
    for worse, better in ((none, own), (other, none)):
        rise = worse - better
        assert rise.mean() > 5 * rise.std() / len(rise) ** 0.5
