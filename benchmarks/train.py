"""Training a small U-Net: `diffcli train` beside diffusers' recipe and beside the bare step of the same network.

    python benchmarks/train.py DATA_ROOT [--quick] [--precision fp32 bf16] [--set network.channels=32 compile=true ...]

DATA_ROOT has MNIST/raw; everything runs on two threads of the CPU, batches of 64, 1 x 28 x 28, each contestant in a process of its
own and in turns of a few seconds, so that whatever else the machine does falls on all alike; a figure is the median over the
turns.  Ten minutes, --quick five.

"diffcli train" is the command itself: hydra, Lightning, data, noise, loss, EMA, metrics.csv; without previews, validations and
checkpoints.  "bare" is forward, backward, zero_grad and a fused AdamW step of the same network on the same tensors again and
again.  "diffusers" is the loop of its examples/unconditional_image_generation/train_unconditional.py: UNet2DModel, DDPMScheduler,
EMAModel, clipping, with the images in memory and the optimiser's settings ours.  The loss is the mean squared error of the noise
a dimension, of the averaged weights, on the same test images, noise and levels.
"""

import argparse
import contextlib
import copy
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.datasets import MNIST

from diffcli.cli import main as diffcli
from diffcli.commands import train
from diffcli.memory import keep_freed
from diffcli.paths import conf_dir
from diffcli.training.ema import EMA

NAMES = ("diffcli train", "diffcli, bare", "diffusers", "diffusers, bare")
WARM = 3  # steps before the clock runs
BATCH, SHAPE = 64, (1, 28, 28)
OPTIM = dict(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
THEIRS = dict(  # what comes nearest to network=unet in parameters and arithmetic
    sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64, 64), norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), attention_head_dim=32,
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
)  # fmt: skip
FIXED = [
    "data=mnist",
    f"batch_size={BATCH}",
    "preview.every=0",
    "trainer.max_steps=1000000",
    "checkpoint.every=1000000",
]
FIXED += [
    "trainer.val_check_interval=1000000",
    "checkpoint.minutes=null",
    "optim.decay=none",
    f"optim.lr={OPTIM['lr']}",
]
LEVELS = 16  # times at which the loss is compared
KINDS = {  # of an operation, by a part of its name; the first that fits
    "convolution": ("convolution", "conv"), "matrix product, attention": ("addmm", "::mm", "bmm", "attention", "linear"),
    "norm": ("norm",), "activation": ("silu",), "optimiser, EMA": ("adam", "foreach", "lerp"),
    "layout, dtype, copies": ("copy", "contiguous", "::to", "cat", "clone", "zero", "fill"),
}  # fmt: skip


def digits(root: str, train: bool) -> Tensor:
    """The digits (N, 1, 28, 28), uint8."""
    return MNIST(root, train=train).data[:, None]


def levels() -> Tensor:
    """The share of the data's variance at each of the chain's thousand levels."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def autocast(precision: str):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def bare(network: nn.Module, call: Callable, precision: str) -> Iterator[None]:
    """Forward, backward and optimiser on the same batch."""
    optim = torch.optim.AdamW(network.parameters(), **OPTIM, fused=True)
    x, c, target = torch.randn(BATCH, *SHAPE), torch.rand(BATCH) * 1000, torch.randn(BATCH, *SHAPE)
    while True:
        with autocast(precision):
            out = call(network, x, c)
        nn.functional.mse_loss(out.float(), target).backward()
        optim.step()
        optim.zero_grad()
        yield


class Diffusers:
    """diffusers' recipe."""

    def __init__(self, options, precision: str):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        torch.manual_seed(0)
        self.images, self.precision = digits(options.root, train=True), precision
        self.network, self.schedule = UNet2DModel(**THEIRS), DDPMScheduler()
        self.average = EMAModel(self.network.parameters(), decay=0.995, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def steps(self) -> Iterator[None]:
        optim = torch.optim.AdamW(self.network.parameters(), **OPTIM)
        rate = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: min(1.0, (step + 1) / 100))
        while True:
            for index in torch.randperm(len(self.images)).split(BATCH)[:-1]:
                clean = self.images[index].float() / 127.5 - 1
                noise = torch.randn_like(clean)
                k = torch.randint(0, 1000, (BATCH,))
                noisy = self.schedule.add_noise(clean, noise, k)
                with autocast(self.precision):
                    out = self.network(noisy, k).sample
                nn.functional.mse_loss(out.float(), noise).backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                optim.step()
                rate.step()
                optim.zero_grad()
                self.average.step(self.network.parameters())
                yield

    def held_out(self, xt: Tensor, k: int) -> Tensor:
        return self.network(xt, k).sample

    @torch.no_grad()
    def loss(self, test: Tensor) -> float:
        self.average.store(self.network.parameters())
        self.average.copy_to(self.network.parameters())
        value = held_out(self.held_out, test, self.precision)
        self.average.restore(self.network.parameters())
        return value


@torch.no_grad()
def held_out(eps: Callable[[Tensor, int], Tensor], test: Tensor, precision: str) -> float:
    """The mean squared error of the noise a dimension, over LEVELS of the chain's thousand levels."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    abar = levels()
    for i in range(LEVELS):
        k = int((i + 0.5) * 1000 / LEVELS)
        noise = torch.randn(test.shape, generator=generator)
        xt = (abar[k].sqrt() * test + (1 - abar[k]).sqrt() * noise).float()
        with autocast(precision):
            total += (eps(xt, k).float() - noise).square().mean().item() / LEVELS
    return total


class Turns(L.Callback):
    """Between two of Lightning's batches `diffcli train` waits for its next turn."""

    def __init__(self, here: Connection, test: Tensor, precision: str):
        self.here, self.test, self.precision, self.n = here, test, precision, -WARM

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self.n += 1
        if self.n < 0 or (self.n and time.perf_counter() < self.end):
            return
        if self.n:
            self.here.send((self.n, time.perf_counter() - self.begun))
        else:
            self.here.send("ready")
        while (word := self.here.recv()) == "loss":
            self.here.send(self.loss(trainer, module))
        trainer.should_stop = word == "end"
        self.n, self.begun = 0, time.perf_counter()
        self.end = self.begun + (0 if trainer.should_stop else word)

    def loss(self, trainer, module) -> float:
        denoiser, sde = module.denoiser, module.denoiser.sde
        (average,) = (c for c in trainer.callbacks if isinstance(c, EMA))
        abar = levels()
        lam = 0.5 * (abar.log() - torch.log1p(-abar))
        denoiser.eval()
        with average.applied(module):
            value = held_out(lambda xt, k: denoiser.eps(xt, sde.time(lam[k])), self.test, self.precision)
        denoiser.train()
        return value


def train_ours(options, precision: str, here: Connection, test: Tensor) -> None:
    """`diffcli train`."""
    build_trainer = train.build_trainer

    def with_turns(*args, **kwargs):
        trainer = build_trainer(*args, **kwargs)
        trainer.callbacks.append(Turns(here, test, precision))
        return trainer

    train.build_trainer = with_turns
    with tempfile.TemporaryDirectory() as folder:
        settings = [*FIXED, f"data.root={options.root}", f"out={folder}/run", *options.set]
        settings += ["trainer.precision=bf16-mixed"] if precision == "bf16" else []
        with contextlib.redirect_stdout(io.StringIO()):
            code = diffcli(["train", *settings])
    if code:
        raise SystemExit(code)


def network_of(options) -> nn.Module:
    """The network that these settings of `diffcli train` make."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["network.shape=[1,28,28]", *(s for s in options.set if s.startswith("network"))])
    torch.manual_seed(0)
    return instantiate(config.network, _convert_="all")


def contestant(name: str, options, precision: str, here: Connection) -> None:
    """Take turns, each as long as it is told, and answer with the number of steps and the seconds that they took."""
    torch.set_num_threads(2)
    test = digits(options.root, train=False)[:256].float() / 127.5 - 1
    if name == "diffcli train":
        return train_ours(options, precision, here, test)
    compiled = "compile=true" in options.set
    theirs = Diffusers(options, precision) if "diffusers" in name else None
    network = theirs.network if theirs else network_of(options)
    if compiled:
        network.compile()
    if name == "diffcli, bare":
        keep_freed()  # as `diffcli train` does
    call = (lambda net, x, c: net(x, c).sample) if theirs else (lambda net, x, c: net(x, c))
    steps = theirs.steps() if name == "diffusers" else bare(network, call, precision)
    for _ in range(WARM):
        next(steps)
    here.send("ready")
    while (word := here.recv()) != "end":
        if word == "loss":
            here.send(theirs.loss(test))
        elif word == "profile":
            here.send(profile(steps, 5))
        else:
            begun, n = time.perf_counter(), 0
            while n == 0 or time.perf_counter() - begun < word:
                next(steps)
                n += 1
            here.send((n, time.perf_counter() - begun))


def matrix_limit(precision: str) -> float:
    """GFLOP/s of a matrix product of 2048 x 2048, the best of ten."""
    a = torch.randn(2048, 2048, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    took = []
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - begun)
    return 2 * 2048**3 / min(took) / 1e9


def arithmetic(network: nn.Module) -> float:
    """GFLOP of forward and backward of a sample."""
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(network)
    with FlopCounterMode(display=False) as counted:
        out = network(torch.randn(2, *SHAPE), torch.rand(2) * 1000)
        getattr(out, "sample", out).sum().backward()
    return counted.get_total_flops() / 2e9


def profile(steps: Iterator[None], n: int) -> dict[str, float]:
    """Milliseconds a bare step by the kind of operation, from the operations' own time on the calling thread."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as measured:
        for _ in range(n):
            next(steps)
    found = dict.fromkeys([*KINDS, "other element-wise", "autograd, Python"], 0.0)
    for event in measured.key_averages():
        name = event.key.lower()
        own = "aten" in name or "mkldnn" in name or "adam" in name or "graph" in name
        kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "other element-wise")
        found[kind if own else "autograd, Python"] += event.self_cpu_time_total / 1e3 / n
    return found


def run(options, precision: str) -> None:
    context, ends, processes = multiprocessing.get_context("spawn"), {}, []
    names = NAMES[::2] if options.recipes else NAMES
    for name in names:
        ends[name], there = context.Pipe()
        processes.append(context.Process(target=contestant, args=(name, options, precision, there), daemon=True))
        processes[-1].start()
        there.close()
        ends[name].recv()  # one compiles after the other
    took, steps, losses = {name: [] for name in names}, dict.fromkeys(names, 0), []
    rounds = max(1, round(options.seconds / options.turn))
    for i in range(1, rounds + 1):
        for name, end in ends.items():
            n, seconds = asked(end, options.turn)
            steps[name] += n
            took[name].append(seconds / (n * BATCH))
        if i * options.losses // rounds > len(losses):
            losses.append((i * options.turn, *((steps[name], asked(ends[name], "loss")) for name in NAMES[::2])))
            print("seconds, (steps, loss) of each:", *losses[-1], file=sys.stderr, flush=True)
    kinds = {} if options.recipes else asked(ends["diffcli, bare"], "profile")
    for end in ends.values():
        end.send("end")
    for process in processes:
        process.join(60)
    ours, theirs = network_of(options), Diffusers(options, precision).network
    show(precision, took, steps, losses, kinds, {"diffcli": ours, "diffusers": theirs})


def asked(end: Connection, word):
    end.send(word)
    return end.recv()


def show(precision: str, took: dict, steps: dict, losses: list, kinds: dict, networks: dict) -> None:
    limit, work = matrix_limit(precision), {name: arithmetic(network) for name, network in networks.items()}
    print(f"\n### {precision}: {limit:.0f} GFLOP/s in matrix products\n")
    for name, network in networks.items():
        size = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{name}: {size:.2f} M parameters, {1e3 * work[name]:.0f} MFLOP a sample forward and backward\n")
    print("\n| | samples/s | of diffusers | of the matrix limit | steps |\n| --- | --- | --- | --- | --- |")
    for name, seconds in took.items():
        ratio = statistics.median(b / a for a, b in zip(seconds, took["diffusers"], strict=True))
        rate = 1 / statistics.median(seconds)
        print(
            f"| {name} | {rate:.0f} | {ratio:.2f} | {rate * work[name.split()[0].strip(',')] / limit:.2f} | {steps[name]} |"
        )
    print("\n| seconds of each | steps, loss of diffcli | of diffusers |\n| --- | --- | --- |")
    for at, ours, theirs in losses:
        print(f"| {at:.0f} | {ours[0]}, {ours[1]:.4f} | {theirs[0]}, {theirs[1]:.4f} |")
    if not kinds:
        return print(flush=True)
    recipe = statistics.median(a / b for a, b in zip(took["diffcli train"], took["diffcli, bare"], strict=True))
    print(f"\nThe recipe takes {recipe:.3f} of the bare step's time.")
    whole, least = (1e3 * BATCH * s for s in (statistics.median(took["diffcli, bare"]), work["diffcli"] / limit))
    print(f"\n| bare step: {whole:.0f} ms, {least:.0f} at the matrix limit | ms | share |\n| --- | --- | --- |")
    for kind, ms in kinds.items():
        print(f"| {kind} | {ms:.1f} | {ms / sum(kinds.values()):.2f} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder that holds MNIST/raw")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, help="of each contestant")
    parser.add_argument("--turn", type=float, default=2.0, help="seconds of a turn")
    parser.add_argument(
        "--recipes", action="store_true", help="the two recipes alone, where their losses are the question"
    )
    parser.add_argument("--losses", type=int, default=4, help="comparisons of the loss")
    parser.add_argument("--set", nargs="+", default=[], help="settings of diffcli train; compile=true is for all")
    options = parser.parse_args()
    options.seconds = options.seconds or (12 if options.quick else 64)
    torch.set_num_threads(2)
    for precision in options.precision:
        run(options, precision)


if __name__ == "__main__":
    main()
