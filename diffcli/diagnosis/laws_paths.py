"""Laws of the paths alpha and sigma, and of what is read from a denoiser."""

import torch
from torch import nn

from diffcli.diagnosis.law import Claim, apart, law
from diffcli.diagnosis.laws_cases import normal, sdes, times, usual
from diffcli.diffusion.prediction import EDM, X0, Eps, Score, V, Velocity

LAWS: list[Claim] = []
STEP = 1e-4  # of differences of fourth order


def difference(fn, t):
    """df/dt by values alone."""
    h = STEP
    return (8 * (fn(t + h) - fn(t - h)) - (fn(t + 2 * h) - fn(t - 2 * h))) / (12 * h)


@law(LAWS, "drift of the path", "d log α/dt = f", "Song et al. 2021, eq. 29; Kingma et al. 2021", 1e-7)
def drift(device, worst):
    for name, sde in sdes().items():
        t = times(sde)
        worst.see(apart(difference(sde.log_alpha, t), sde.f(t)), name)


@law(LAWS, "noise of the path", "dσ²/dt = 2 f σ² + g²,  g² > 0", "Särkkä & Solin 2019, eq. 5.51", 1e-7)
def noise(device, worst):
    for name, sde in sdes().items():
        t = times(sde)
        slope = difference(lambda t, sde=sde: sde.sigma(t) ** 2, t)
        worst.see(apart(2 * sde.f(t) * sde.sigma(t) ** 2 + sde.g2(t), slope), name)
        worst.see(1.0 - (sde.g2(t) > 0).double().mean(), f"g² of {name}")


@law(LAWS, "clock", "t(λ(t)) = t,  dλ/dt < 0,  λ = log(α/σ)", "Kingma et al. 2021, sec. 3", 1e-9)
def clock(device, worst):
    for name, sde in sdes().items():
        t = torch.linspace(sde.t_min, sde.t_max, 41, dtype=torch.float64)
        lam = sde.lam(t)
        worst.see((sde.time(lam) - t).abs(), name)
        worst.see((lam.diff() >= 0).double().mean(), f"λ of {name} rises")
        worst.see(apart(torch.exp(lam), sde.alpha(t) / sde.sigma(t)), f"λ of {name}")


@law(
    LAWS, "transitions", "α_t = r α_s,  σ_t² = r² σ_s² + s²,  x_t = r x_s + s z", "Kingma et al. 2021, eq. 20–21", 1e-10
)
def transitions(device, worst):
    for name, sde in sdes().items():
        t = times(sde)
        ratio, std = sde.transition(t[:-1], t[1:])
        worst.see(apart(ratio * sde.alpha(t[:-1]), sde.alpha(t[1:])), name)
        worst.see(apart(ratio**2 * sde.sigma(t[:-1]) ** 2 + std**2, sde.sigma(t[1:]) ** 2), name)


class Told(nn.Module):
    """A network that says what it was told."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, c_noise):
        return self.out


@law(
    LAWS,
    "readings of every prediction",
    "x = α x₀ + σ ε,  score = −ε/σ,  v = α ε − σ x₀,  dx/dt = α′ x₀ + σ′ ε",
    "Salimans & Ho 2022, app. D; Karras et al. 2022, eq. 7; Lipman et al. 2023, eq. 10",
    1e-7,
)
def readings(device, worst):
    for name, sde in usual().items():
        t = times(sde, device)[::2].repeat_interleave(3)
        x0, eps = (normal(k, len(t), 2).to(device) for k in (3, 4))
        alpha, sigma = (c(t)[:, None] for c in (sde.alpha, sde.sigma))
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        velocity = sum(difference(c, t)[:, None] * a for c, a in ((sde.alpha, x0), (sde.sigma, eps)))
        q = sigma**2 + 0.25 * alpha**2
        unit = (x0 - 0.25 * alpha / q * x) * torch.sqrt(q) / (0.5 * sigma)
        told = {Eps: eps, X0: x0, V: v, Score: -eps / sigma, Velocity: velocity, EDM: unit}
        for kind, out in told.items():
            model = kind(sde, Told(out))
            found = {
                "x₀": (model(x, t), x0),
                "ε": (model.eps(x, t), eps),
                "score": (sigma * model.score(x, t), -eps),
                "v": (model.v(x, t), v),
                "velocity": (model.velocity(x, t), velocity),
            }
            for reading, (got, truth) in found.items():
                worst.see(apart(got, truth), f"{reading} of {kind.__name__} on {name}")
