"""Laws of the machine: its arithmetic, its networks, and random numbers that belong to their item."""

import math

import torch
from torch import Tensor, nn

from diffcli.diagnosis.law import Claim, apart, law
from diffcli.diagnosis.laws_cases import mixture, normal, sdes
from diffcli.diffusion.exact import Exact
from diffcli.diffusion.grid import UniformLam
from diffcli.diffusion.prediction import Eps
from diffcli.diffusion.samplers import Ancestral, Heun
from diffcli.networks.dit import DiT
from diffcli.networks.mlp import MLP
from diffcli.networks.unet import UNet
from diffcli.randomness import Draw, ItemNoise
from diffcli.sampling import draw_samples

LAWS: list[Claim] = []
# of seed 0, item 0: what every machine and every version draws
FIRST = (-0.7113404431293813, -0.3334203906053593, -0.7939633258931377)


def filled(network: nn.Module) -> nn.Module:
    """Its weights drawn, none of them zero, of the scale at which activations keep theirs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            scale = 1.0 if p.ndim < 2 else p[0].numel() ** -0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return network.eval()


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """A small one of each kind, with inputs."""
    image = normal(1, 4, 3, 16, 16)
    return {
        "MLP": (filled(MLP([2], width=64, blocks=2)), normal(0, 4, 2)),
        "UNet": (filled(UNet([3, 16, 16], channels=32, multipliers=[1, 2])), image),
        "DiT": (filled(DiT([3, 16, 16], patch=4, width=64, depth=2, heads=4)), image),
    }


def parts() -> dict[str, object]:
    """The operations that networks are made of, as functions of (n, 64, 8, 8)."""
    kernel, matrix = normal(2, 64, 64, 3, 3) / 24, normal(3, 64, 64) / 8

    def attention(x):
        q = x.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(q, q.roll(1, -1), q.flip(-1))

    return {
        "matrix product": lambda x: x.flatten(2).transpose(1, 2) @ matrix.to(x),
        "convolution": lambda x: nn.functional.conv2d(x, kernel.to(x), padding=1),
        "attention": attention,
        "group norm": lambda x: nn.functional.group_norm(x, 8),
        "layer norm": lambda x: nn.functional.layer_norm(x, [8, 8]),
        "silu": nn.functional.silu,
        "exp": torch.exp,
        "log1p": lambda x: torch.log1p(x.abs()),
        "sine": lambda x: torch.sin(10 * x),
        "sum": lambda x: x.sum((2, 3)),
    }


@law(
    LAWS,
    "float32 arithmetic",
    "each operation of a network in float32 here = in float64 on the CPU",
    "relative to its largest value",
    1e-5,
)
def arithmetic(device, worst):
    x = normal(0, 4, 64, 8, 8)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name, fn in parts().items():
            worst.see(apart(fn(x.float().to(device)), fn(x.float().double())), name)


@law(LAWS, "float64 arithmetic", "each operation in float64 here = on the CPU", "relative to its largest value", 1e-12)
def double_arithmetic(device, worst):
    x = normal(0, 4, 64, 8, 8)
    for name, fn in parts().items():
        worst.see(apart(fn(x.to(device)), fn(x)), name)
    # and known numbers, as the CPU is compared with itself
    one = torch.ones(1, dtype=torch.float64, device=device)
    worst.see(apart(4 * torch.atan(one), torch.pi * one), "π")
    worst.see(apart(torch.exp(one), math.e * one), "e")
    eye, a = torch.eye(64, dtype=torch.float64, device=device), normal(4, 64, 64).to(device)
    worst.see(1e-3 * apart(torch.linalg.solve(a, a @ eye), eye), "solve")
    q = torch.linalg.eigh(a + a.T)
    worst.see(apart((q.eigenvectors * q.eigenvalues) @ q.eigenvectors.T, a + a.T), "eigenvectors")


@law(
    LAWS,
    "networks",
    "F of MLP, UNet and DiT in float32 here, as this program runs them = in float64 on the CPU",
    "relative to its largest value; 10-bit products (TF32) leave about 1e-3",
    4e-3,
)
def forward(device, worst):
    c_noise = torch.tensor([1.0, 50.0, 300.0, 900.0], dtype=torch.float64)
    tf32 = device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    for name, (network, x) in networks().items():
        with torch.no_grad():
            truth = network.double()(x.float().double(), c_noise)
            found = network.float().to(device)(x.float().to(device), c_noise.float().to(device))
        worst.see(apart(found, truth), f"{name}, TF32 is on" if tf32 else name)


@law(
    LAWS,
    "derivatives of networks",
    "∂F/∂x and ∂F/∂weights in float32 here = in float64 on the CPU",
    "relative to their largest value",
    1e-2,
)
def backward(device, worst):
    c_noise = torch.tensor([1.0, 50.0, 300.0, 900.0], dtype=torch.float64)
    for name, (network, x) in networks().items():

        def slopes(network, x, c_noise):
            x = x.requires_grad_()
            out = network(x, c_noise)
            grads = torch.autograd.grad((out * torch.cos(out.detach())).sum(), [x, *network.parameters()])
            return torch.cat([g.flatten() for g in grads])

        truth = slopes(network.double(), x.float().double(), c_noise)
        found = slopes(network.float().to(device), x.float().to(device), c_noise.float().to(device))
        worst.see(apart(found, truth), name)


@law(
    LAWS,
    "noise belongs to its item",
    "z(seed, item, counter), bit for bit, in any batch; the first numbers of seed 0",
    "this program's own",
    0.0,
)
def noise(device, worst):
    whole = ItemNoise(3, range(40), (2, 3), torch.float32, device)
    for batch in ([7], [39, 0, 7], range(16, 32)):
        part = ItemNoise(3, batch, (2, 3), torch.float32, device)
        for kind in ("__call__", "uniform"):
            a, b = getattr(whole, kind)("a")[list(batch)], getattr(part, kind)("a")
            worst.see((a != b).double().mean(), kind)
        worst.see((whole.signs("a", 4)[list(batch)] != part.signs("a", 4)).double().mean(), "signs")
    z = whole(1).double().cpu()
    others = [ItemNoise(4, range(40), (2, 3))(1), whole(2), whole(1).roll(1, 0)]
    worst.see(max((z == o.double().cpu()).double().mean().item() for o in others), "two seeds, counters or items alike")
    first = ItemNoise(0, [0], (3,), torch.float64)(0)[0]
    worst.see((first - torch.tensor(FIRST, dtype=torch.float64)).abs().max() // 1e-12, "the first numbers")
    draws = [Draw(0, 5).normal("eps", (6,)) for _ in range(2)]
    worst.see((draws[0] != draws[1]).double().mean(), "a training step's")


@law(
    LAWS,
    "noise is normal",
    "mean 0, variance 1, E z⁴ = 3, of 240,000 numbers: in standard errors",
    "moments of N(0, 1)",
    5.0,
)
def normality(device, worst):
    z = ItemNoise(0, range(4000), (60,), torch.float32, device)(1).double().flatten()
    for k, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        worst.see(((z**k).mean() - mean).abs() / (variance / len(z)) ** 0.5, f"moment {k}")
    rows = z.view(4000, 60)
    worst.see((rows[:-1] * rows[1:]).mean().abs() * len(z) ** 0.5, "neighbours")


def drawn(device, batch_size: int, n: int = 40):
    """Samples by a network in float32 with noise, and how many evaluations each took."""
    model = Eps(sdes()["VP, Linear"], networks()["MLP"][0].float()).to(device)
    found = draw_samples(
        model, Ancestral(), UniformLam()(model.sde, 10), (2,), n, 0, batch_size, device=device, dtype=torch.float32
    )
    with torch.no_grad():
        return torch.cat([s.x for s in found])


@law(
    LAWS,
    "samples belong to their item",
    "x_i of batches of 16, of 64, and of fewer samples are the same",
    "this program's own",
    1e-5,
)
def batches(device, worst):
    a = drawn(device, 64)
    worst.see(apart(drawn(device, 16), a), "batches of 16")
    worst.see(apart(drawn(device, 64, 21), a[:21]), "21 samples of 40")
    worst.see((drawn(device, 64) != a).double().mean(), "the same twice")


@law(LAWS, "float32 states", "the probability-flow ODE in float32 = in float64", "relative to its largest value", 1e-3)
def single(device, worst):
    of = mixture(2, device)
    for name in ("VP, Linear", "VE, Geometric", "Flow, Logit"):
        sde = sdes()[name]
        times, x = UniformLam()(sde, 20), sde.prior_std * normal(0, 8, 2).to(device)
        ends = [Heun().walk(Exact(sde, of), x.to(dtype), times, None).x for dtype in (torch.float32, torch.float64)]
        worst.see(apart(*ends), name)
