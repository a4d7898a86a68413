"""The picture of a variational bound: its terms over t, and what each kind of them adds."""

from pathlib import Path

import numpy as np

from diffcli.explain.figures import COLOURS, DPI, _figure
from diffcli.writing import whole


def plot(strata: dict[str, np.ndarray], terms: dict[str, float], per: str, title: str, path: Path) -> None:
    """Mean of a term in nats over t with its error (left); what the terms add to the bound, in nats an item (right).

    strata: t_low, t_high, mean, std_err (J,) each.  terms: name -> nats.
    """
    figure, axes = _figure(1, 2, (10, 4.2), width_ratios=[2.4, 1])
    left, right = axes[0]
    edges = np.append(strata["t_low"], strata["t_high"][-1])
    mean, error = strata["mean"], np.where(np.isfinite(strata["std_err"]), strata["std_err"], 0)
    if edges[0] > 0:
        left.set_xscale("log")
    left.stairs(mean, edges, color=COLOURS[0], linewidth=1.4)
    left.fill_between(
        edges,
        *(np.append(y, y[-1]) for y in (mean - error, mean + error)),
        step="post",
        color=COLOURS[0],
        alpha=0.3,
        linewidth=0,
    )
    if (mean > 0).all() and mean.max() > 30 * mean.min():
        left.set_yscale("log")
    left.set(xlabel="t (0 data, 1 noise)", ylabel=f"nats a {per}")
    left.set_title(f"terms of the sum, mean and standard error a {per}", fontsize=10)
    left.grid(alpha=0.3)
    bars = right.barh(list(terms), list(terms.values()), color=[COLOURS[i % len(COLOURS)] for i in range(len(terms))])
    right.bar_label(bars, fmt="%.4g", padding=3, fontsize=9)
    right.invert_yaxis()
    right.margins(x=0.45)
    right.axvline(0, color="0.4", linewidth=0.8)
    right.set(xlabel="nats an item")
    right.set_title("what adds up", fontsize=10)
    figure.suptitle(title, fontsize=10)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)
