"""Training a U-Net of about 35 M parameters on 3 x 32 x 32 images on one GPU: images a second, share of the GPU's peak, memory.

    python benchmarks/gpu.py DATA_ROOT [--quick] [--peak TFLOPS] [--batch 256] [--device cuda]

DATA_ROOT has cifar-10-batches-py.  Each contestant runs in a process of its own, in bfloat16 autocast with a fused AdamW: "bare"
is forward, backward and step of our network, compiled with CUDA graphs and channels last, on tensors that are there; "diffcli
train" is the command with the same settings, and flips; "diffusers" the loop of its train_unconditional.py; "edm" the loop of its
paper's recipe around our network (noise, preconditioning, Adam, EMA; not compiled).  FLOPs are counted by torch, of forward and
backward.  `synchronisations` are what torch.cuda.set_sync_debug_mode reports in 20 steps of the command.  Ten minutes, --quick
three.  --device cpu runs the same code on a tiny network, to see that it runs.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

NAMES = ("bare", "diffcli train", "diffusers", "edm")
PEAKS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71}  # dense bf16 TFLOP/s
NETWORK = ["network=unet", "network.channels=128", "network.multipliers=[1,2,2,2]", "network.blocks=2"]
TINY = ["network=unet", "network.channels=8", "network.multipliers=[1,2]", "network.blocks=1"]


def words(args) -> list[str]:
    return ["data=cifar10", f"data.root={args.root}", *(NETWORK if args.device == "cuda" else TINY)]


def network(args) -> torch.nn.Module:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from diffcli.paths import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", words(args))
    cfg.network.shape = [3, 32, 32]
    return instantiate(cfg.network, _convert_="all").to(args.device)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=2e-4, fused=True)


def timed(step, args) -> dict:
    """Images a second, the median over windows of steps, after the first."""
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    for _ in range(args.warm):
        step()
    rates = []
    for _ in range(5):
        wait()
        begun = time.perf_counter()
        for _ in range(args.steps):
            step()
        wait()
        rates.append(args.batch * args.steps / (time.perf_counter() - begun))
    memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
    return {"rate": statistics.median(rates), "memory": memory}


def bare(args) -> dict:
    from torch.utils.flop_counter import FlopCounterMode

    net = network(args)
    x, c = torch.randn(args.batch, 3, 32, 32, device=args.device), torch.rand(args.batch, device=args.device)
    with FlopCounterMode(display=False) as flops:
        net(x, c).square().mean().backward()
    if args.device == "cuda":
        net.to(memory_format=torch.channels_last)
        net.compile(mode="reduce-overhead")
    optimiser = adam(net.parameters())

    def step():
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(args.device, torch.bfloat16):
            out = net(x, c)
        out.float().square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    found = timed(step, args)
    return found | {
        "flops": flops.get_total_flops() / args.batch,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def edm(args) -> dict:
    net = network(args)
    average = [p.detach().clone() for p in net.parameters()]
    optimiser, images = (
        torch.optim.Adam(net.parameters(), lr=1e-3),
        torch.rand(50_000, 3, 32, 32, device=args.device) * 2 - 1,
    )

    def step():
        x = images[torch.randint(len(images), (args.batch,), device=args.device)]
        sigma = (torch.randn(args.batch, 1, 1, 1, device=args.device) * 1.2 - 1.2).exp()
        noised, scale = x + sigma * torch.randn_like(x), (sigma**2 + 0.25).sqrt()
        with torch.autocast(args.device, torch.bfloat16):
            out = net(noised / scale, sigma.flatten().log() / 4)
        denoised = 0.25 / scale**2 * noised + 0.5 * sigma / scale * out.float()
        ((scale / (0.5 * sigma)) ** 2 * (denoised - x) ** 2).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 1e-3)

    return timed(step, args)


def diffusers(args) -> dict:
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels = (128, 256, 256, 256) if args.device == "cuda" else (8, 16)
    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")[: len(channels)]
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")[-len(channels) :]
    net = UNet2DModel(
        32,
        3,
        3,
        block_out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=8,
        layers_per_block=2,
    ).to(args.device)
    scheduler, optimiser = DDPMScheduler(), torch.optim.AdamW(net.parameters(), lr=1e-4)
    average = EMAModel(net.parameters())
    average.to(args.device)
    images = torch.rand(50_000, 3, 32, 32, device=args.device) * 2 - 1

    def step():
        x = images[torch.randint(len(images), (args.batch,), device=args.device)]
        eps, t = torch.randn_like(x), torch.randint(1000, (args.batch,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16):
            out = net(scheduler.add_noise(x, eps, t), t).sample
        torch.nn.functional.mse_loss(out.float(), eps).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.step(net.parameters())

    return timed(step, args)


def ours(args) -> dict:
    from diffcli.cli import main
    from diffcli.training.module import Steps

    heard = warnings.catch_warnings(record=True)
    seen = []

    def watch(self, batch, index):
        if args.device == "cuda" and self.trainer.global_step == args.warm + 20:
            seen.append(heard.__enter__())
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if args.device == "cuda" and self.trainer.global_step == args.warm + 40:
            torch.cuda.set_sync_debug_mode("default")
            heard.__exit__(None, None, None)

    Steps.on_train_batch_start = watch
    steps = args.warm + 40 + 5 * args.steps
    fast = ["trainer=gpu", "compile=true", "cuda_graphs=true", "channels_last=true"] if args.device == "cuda" else []
    quiet = [
        "preview.every=0",
        "checkpoint.every=1000000",
        "checkpoint.minutes=null",
        "trainer.val_check_interval=1000000",
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = [f"batch_size={args.batch}", f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={args.steps}"]
        code = main(["train", *words(args), *fast, *quiet, *settings, "augment.flip=true", f"out={out}"])
        if code:
            raise SystemExit(code)
        with (out / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["samples_per_second"]][-4:]
        peak = json.loads((out / "run.json").read_text())["results"].get("peak_memory", 0)
    asked = sum("synchroniz" in str(w.message) for found in seen for w in found)
    found = {k: statistics.median(float(row[k]) for row in rows) for k in ("samples_per_second", "data_wait")}
    rate = found["samples_per_second"]
    return {"rate": rate, "memory": peak, "wait": found["data_wait"], "synchronisations": asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", type=float)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=NAMES)
    args = parser.parse_args()
    args.warm, args.steps = (5, 20) if args.quick else (30, 100)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU here, so that none of these figures could be measured; --device cpu tries the code alone."
        )
        return
    if args.device == "cpu":
        args.batch, args.warm, args.steps = min(args.batch, 8), 1, 2
    if args.only:
        run = {"bare": bare, "diffcli train": ours, "diffusers": diffusers, "edm": edm}[args.only]
        print("RESULT " + json.dumps(run(args)))
        return
    found = {}
    for name in NAMES:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True)
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
        if line is None:
            print(f"{name}: failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
        else:
            found[name] = json.loads(line.removeprefix("RESULT "))
    title = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU, which says nothing of a GPU"
    peak = args.peak or next((v for k, v in PEAKS.items() if k in title), None)
    flops = found.get("bare", {}).get("flops", float("nan"))
    millions = found.get("bare", {}).get("parameters", 0) / 1e6
    print(f"{title}, batch {args.batch}, {millions:.1f} M parameters, {flops / 1e9:.2f} GFLOP an image\n")
    print(
        "| | images/s | of bare | of the peak | memory | data_wait | synchronisations |\n|---|---|---|---|---|---|---|"
    )
    for name, f in found.items():
        share = f"{f['rate'] / found['bare']['rate']:.2f}" if "bare" in found else ""
        of_peak = f"{f['rate'] * flops / peak / 1e12:.0%}" if peak and name != "diffusers" else ""
        wait = f"{f['wait']:.4f}" if "wait" in f else ""
        memory, asked = f"{f['memory'] / 2**30:.1f} GiB", f.get("synchronisations", "")
        print(f"| {name} | {f['rate']:,.0f} | {share} | {of_peak} | {memory} | {wait} | {asked} |")


if __name__ == "__main__":
    main()
