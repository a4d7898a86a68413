"""Numbers as text: tables in columns, CSV files, and the three qualities as sentences."""

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from diffcli.diffusion.sde import SDE
from diffcli.explain.noise_sequence import OVERLAP_GOOD, Sample
from diffcli.writing import whole

FINE = 201
CLOCKS = {  # column -> its two lines of head
    "t": ("", "t"),
    "log_snr_nats": ("log-SNR", "nats"),
    "snr_db": ("", "dB"),
    "score_sde_vp_t": ("score_sde", "VP t"),
    "score_sde_ve_t": ("", "VE t"),
    "score_sde_ve_i": ("", "VE index"),
    "ddpm_i": ("DDPM", "i of 1000"),
    "own_i": ("its own", "level i"),
    "edm_sigma": ("EDM", "sigma"),
    "edm_c_noise": ("", "c_noise"),
    "flow_t": ("flow", "t"),
    "x_vp_over_x": ("x_VP", "/ x"),
    "x_edm_over_x": ("x_EDM", "/ x"),
    "x_flow_over_x": ("x_flow", "/ x"),
}


def coefficients(sde: SDE, t: Tensor) -> dict[str, Tensor]:
    """alpha, sigma, f, g and lam at the times t (n,)."""
    return {
        "t": t,
        "alpha": sde.alpha(t),
        "sigma": sde.sigma(t),
        "f": sde.f(t) + 0.0,  # -0 is 0
        "g": sde.g2(t).clamp_min(0).sqrt(),
        "lam": sde.lam(t),
    }


def fine_times(sde: SDE) -> Tensor:
    """FINE times evenly from t_min to t_max, and as many a decade below the first of them as it takes to see small times."""
    even = torch.linspace(sde.t_min, sde.t_max, FINE, dtype=torch.float64)
    small = torch.logspace(-5, 0, 51, dtype=torch.float64) * even[1]
    return torch.cat([even, small[small > sde.t_min]]).unique()


def number(x: float) -> str:
    """Four figures, — for nan."""
    return "—" if math.isnan(x) else f"{x:.4g}"


def text_table(columns: dict[str, Tensor], heads: dict[str, tuple[str, str]] | None = None) -> str:
    """Columns of numbers, right-aligned under one line of heads or two."""
    lines = []
    for name, values in columns.items():
        head = list(heads[name]) if heads else [name]
        cells = head + [number(x) for x in values.tolist()]
        width = max(map(len, cells))
        lines.append([cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(row) for row in zip(*lines, strict=True))


def listed(columns: dict[str, Tensor]) -> dict[str, list[float | None]]:
    """The same for a JSON file: null for nan."""
    return {name: [None if math.isnan(x) else x for x in values.tolist()] for name, values in columns.items()}


def write_csv(path: Path, columns: dict[str, Tensor]) -> None:
    """One line for each time, every digit; empty for nan."""
    with whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in torch.stack(list(columns.values()), dim=1).tolist():
            writer.writerow(["" if math.isnan(x) else repr(x) for x in row])


def quality_lines(qualities: dict, sample: Sample) -> list[str]:
    """The three qualities, each with its verdict and the numbers that it rests on."""
    first, last = qualities["near_data"], qualities["near_prior"]
    scale = ""
    if first["noise_in_scales"] is not None:
        scale = f", {first['noise_in_scales']:.3g} times {sample.scale_text} ({first['scale']:.3g})"
    lines = [
        f"  1 p_0 near the data    {first['verdict']:<5}  at t_min = {first['t']:.3g} sigma/alpha = {first['noise']:.3g}"
        f"{scale}; SNR {first['snr_db']:.1f} dB",
        f"  2 p_1 near the prior   {last['verdict']:<5}  at t_max = {last['t']:.4g} KL to N(0, {last['prior_std']:.4g}² I)"
        f" = {last['kl']:.3g} nats ({last['kl_per_dim']:.2g} a dimension) from the data's moments;"
        f" at most {last['kl_upper']:.3g}",
    ]
    for i, (name, found) in enumerate(qualities["neighbours"].items()):
        low, high = found["between"]
        lines.append(
            f"  {'3 neighbours overlap ' if i == 0 else ' ' * 22}  {found['verdict']:<5}  {name}: least Bhattacharyya overlap"
            f" {found['marginal_overlap']:.3g} of two marginals (t = {low:.3g}, {high:.3g}),"
            f" {found['item_overlap']:.3g} of one item's noise"
        )
    d = sample.moments.dimensions
    needed = next(iter(qualities["neighbours"].values()))["levels_needed"]
    lines.append(
        f"    (annealed Langevin wants {OVERLAP_GOOD:.2f} or more, with d = {d} that is {needed} levels even in lam;"
        " ODE and SDE solvers do not need it)"
    )
    return lines
