"""Laws of a density that moves with its SDE, on the exact mixture."""

import torch

from diffcli.diagnosis.law import Claim, apart, law
from diffcli.diagnosis.laws_cases import at, gaussian, mixture, normal, sdes, times
from diffcli.diffusion.density import asymmetry, continuity, fokker_planck, score_fpe
from diffcli.diffusion.energy import Energy
from diffcli.diffusion.exact import Exact
from diffcli.networks.mlp import MLP

LAWS: list[Claim] = []


def cases(device):
    """Each SDE's exact model, points and their times."""
    of = mixture(2, device)
    for name, sde in sdes().items():
        x, t = at(sde, of, times(sde, device)[::2], 3)
        yield name, sde, Exact(sde, of), x, t


@law(LAWS, "exact score", "s = ∇ log p_t by automatic differentiation", "definition", 1e-9)
def exact_score(device, worst):
    for name, _, model, x, t in cases(device):
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
        worst.see(apart(model.score(x, t), gradient), name)


@law(
    LAWS,
    "Tweedie",
    "E[x₀|x] = (x + σ² s)/α = Σ w_k(x) (m_k + α C_k (α² C_k + σ²)⁻¹ (x − α m_k))",
    "Efron 2011, eq. 2.8",
    1e-7,
)
def tweedie(device, worst):
    for name, sde, model, x, t in cases(device):
        of, alpha, sigma = model.mixture, sde.alpha(t), sde.sigma(t)
        eye = torch.eye(2, dtype=torch.float64, device=x.device)
        cov = alpha[:, None, None, None] ** 2 * of.covs + sigma[:, None, None, None] ** 2 * eye  # (n, K, 2, 2)
        off = x[:, None] - alpha[:, None, None] * of.means
        solved = torch.linalg.solve(cov, off[..., None])
        log_w = of.weights.log() - 0.5 * ((off[..., None, :] @ solved)[..., 0, 0] + torch.linalg.slogdet(cov)[1])
        means = of.means + alpha[:, None, None] * (of.covs @ solved)[..., 0]
        truth = (torch.softmax(log_w, 1)[..., None] * means).sum(1)
        worst.see(apart(model(x, t), truth), name)


@law(LAWS, "Fokker–Planck", "∂p/∂t = −div(f x p) + ½ g² Δp", "Song et al. 2021, app. D.1", 1e-7)
def forward_equation(device, worst):
    for name, sde, model, x, t in cases(device):
        worst.see(fokker_planck(model.log_prob, sde, x, t).relative, name)


@law(
    LAWS,
    "continuity",
    "∂ log p/∂t = −div v − v·s,  v the probability-flow ODE",
    "Song et al. 2021, eq. 13 and app. D.1",
    1e-7,
)
def flow(device, worst):
    for name, _, model, x, t in cases(device):
        worst.see(continuity(model.log_prob, model.velocity, x, t).relative, name)


@law(LAWS, "score Fokker–Planck", "∂s/∂t = ∇(½ g² div s + ½ g² ‖s‖² − f x·s − d f)", "Lai et al. 2023, eq. 7", 1e-6)
def score_equation(device, worst):
    for name, sde, model, x, t in cases(device):
        worst.see(score_fpe(model.score, sde, x, t).relative, name)


@law(
    LAWS,
    "marginals of the forward SDE",
    "x_t = r x_s + s z takes N(α_s m, α_s² C + σ_s²) to that of t",
    "Särkkä & Solin 2019, sec. 6.1",
    1e-9,
)
def marginals(device, worst):
    of, eye = gaussian(2), torch.eye(2, dtype=torch.float64)
    for name, sde in sdes().items():
        s, t = times(sde)[:2]
        ratio, std = sde.transition(s, t)
        before, after = (sde.alpha(a) ** 2 * of.covs[0] + sde.sigma(a) ** 2 * eye for a in (s, t))
        worst.see(apart(ratio**2 * before + std**2 * eye, after), name)
        # the same law as the exact model says
        x = normal(5, 8, 2)
        off = x - sde.alpha(t) * of.means[0]
        log_p = -0.5 * ((off @ torch.linalg.inv(after) * off).sum(1) + torch.logdet(2 * torch.pi * after))
        worst.see(apart(Exact(sde, of.to(device)).log_prob(x.to(device), t.to(device)), log_p), f"log p of {name}")
        of.cpu()


@law(
    LAWS, "energy", "s = −∇E has a symmetric Jacobian, and is the difference quotient of −E", "Salimans & Ho 2021", 1e-5
)
def energy(device, worst):
    torch.manual_seed(0)
    network = MLP([2], width=16, blocks=1)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    network = network.double().to(device)
    for name in ("VP, Linear", "VE, Geometric", "Flow, Logit"):
        sde = sdes()[name]
        model, t = Energy(sde, network), times(sde, device)
        x = (normal(6, len(t), 2) * torch.hypot(sde.alpha(t), sde.sigma(t)).cpu()[:, None]).to(device)
        worst.see(asymmetry(model.score, x, t), name)
        h = 1e-4 * torch.hypot(sde.alpha(t), sde.sigma(t))[:, None]
        along = torch.ones_like(x)
        with torch.no_grad():
            values = {k: model.energy(x + k * h * along, t) for k in (-2, -1, 1, 2)}
            slope = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h[:, 0])
            worst.see(apart(-(model.score(x, t) * along).sum(1), slope), f"difference quotient on {name}")
