"""Diversity against fidelity: agreement with the label, Fréchet distance and recall as guidance grows, for both guidances.

    python benchmarks/guidance.py DATA_ROOT MODEL.ckpt NOISY.ckpt CLEAN.ckpt [--n 1000] [--out outputs/guidance]

MODEL is of `experiment=mnist_label`; NOISY of `experiment=mnist_classifier sde=vp trainer.max_steps=4000`, which guides;
CLEAN of `experiment=mnist_classifier`, which judges.  Each point is one `diffcli evaluate label=all`; those that are there
already are not made again.  Prints a Markdown table, and draws guidance.png into the folder.  The settings behind the
names are passed on, as `sampler=ddim steps=50`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCALES = (0, 0.5, 1, 2, 3, 5, 10)
FIGURES = {"agreement": "agreement", "frechet": "Fréchet distance", "recall": "recall"}
KINDS = {"cfg": "classifier-free", "classifier": "classifier"}


def point(kind: str, scale: float, args, more: list[str]) -> dict:
    """The figures of one card, with their floors."""
    folder = Path(args.out) / f"{kind}-{scale:g}"
    if not (folder / "card.json").exists():
        guidance = [f"guidance={kind}", f"guidance.scale={scale}"]
        guidance += [f"guidance.ckpt={args.noisy}"] if kind == "classifier" else []
        words = f"""evaluate ckpt={args.model} data.root={args.root} label=all n={args.n} repeats=1 neighbours=false
            features=classifier features.ckpt={args.clean} sampler=dpmpp_2m steps=20 out={folder} overwrite=true"""
        subprocess.run([sys.executable, "-m", "diffcli", *words.split(), *guidance, *more], check=True)
    card = json.loads((folder / "card.json").read_text())
    figures = {figure["name"]: figure for figure in card["figures"]}
    return {name: figures[name] for name in FIGURES} | {"nfe": card["draw"]["nfe"]["mean"]}


def draw(found: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for kind, label in KINDS.items():
        rows = [found[kind, scale] for scale in SCALES]
        for ax, (name, title) in zip(axes[:3], FIGURES.items(), strict=True):
            ax.plot(SCALES, [row[name]["values"][0] for row in rows], "o-", ms=4, label=label)
            ax.set(xlabel="γ", title=title)
        agreement, recall = ([row[name]["values"][0] for row in rows] for name in ("agreement", "recall"))
        axes[3].plot(agreement, recall, "o-", ms=4, label=label)
        for x, y, scale in zip(agreement, recall, SCALES, strict=True):
            axes[3].annotate(f"{scale:g}", (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    for ax, name in zip(axes[:3], FIGURES, strict=True):
        floor = found["cfg", SCALES[0]][name]["floor"]
        if floor:
            ax.axhline(sum(floor) / len(floor), color="0.6", ls="--", lw=1, label="real digits")
    axes[1].set_yscale("log")
    axes[3].set(xlabel="agreement", ylabel="recall", title="diversity against fidelity")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("root", "model", "noisy", "clean"):
        parser.add_argument(name)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", default="outputs/guidance")
    args, more = parser.parse_known_args()
    found = {(kind, scale): point(kind, scale, args, more) for kind in KINDS for scale in SCALES}
    print(f"| guidance, {args.n} samples | γ | agreement | Fréchet | recall | NFE |\n|---|---|---|---|---|---|")
    for (kind, scale), row in found.items():
        values = [row[name]["values"][0] for name in FIGURES]
        print(f"| {KINDS[kind]} | {scale:g} | {values[0]:.1%} | {values[1]:.1f} | {values[2]:.3f} | {row['nfe']:.0f} |")
    floor = {name: row[name]["floor"] for name in FIGURES}
    if all(floor.values()):
        real = {name: sum(values) / len(values) for name, values in floor.items()}
        print(
            f"| real training digits | – | {real['agreement']:.1%} | {real['frechet']:.1f} | {real['recall']:.3f} | – |"
        )
    draw(found, Path(args.out) / "guidance.png")
    best = max(row["agreement"]["values"][0] for row in found.values())
    return 0 if best >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
