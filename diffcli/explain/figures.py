"""The pictures of `diffcli explain`: coefficients, forward paths, score fields, energies, and p_t in one dimension."""

from pathlib import Path

import numpy as np

from diffcli.writing import whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, told apart by all eyes
DPI = 110
DECADES = 2.5  # a positive curve that spans more is drawn on a logarithmic axis


def _figure(rows: int, columns: int, size: tuple[float, float], **more):
    # Figure and Agg without pyplot: no global state, no display, no figures left open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _wide(y: np.ndarray) -> bool:
    return bool((y > 0).all() and y.max() > 10**DECADES * y.min())


def coefficients(columns: dict[str, np.ndarray], title: str, path: Path) -> None:
    """alpha and sigma, lam, f and g over t; logarithmic axes where a curve spans over DECADES."""
    t = columns["t"]
    figure, axes = _figure(2, 2, (9, 6.4), sharex=True)
    (first, second), (third, fourth) = axes
    for name, style, colour in (("alpha", "-", COLOURS[0]), ("sigma", "--", COLOURS[1])):
        first.plot(t, columns[name], style, color=colour, label=name)
    if _wide(np.concatenate([columns["alpha"], columns["sigma"]])) and columns["sigma"].max() > 2:
        first.set_yscale("log")
    first.legend()
    first.set_title("x_t = alpha x_0 + sigma eps")
    second.plot(t, columns["lam"], color=COLOURS[2])
    second.axhline(0, color="0.6", linewidth=0.8)
    second.set_title("lam = log(alpha / sigma)")
    fall = -columns["f"]
    wide = _wide(fall)
    third.plot(t, fall if wide else columns["f"], color=COLOURS[0])
    third.set_yscale("log" if wide else "linear")
    if np.ptp(columns["f"]) == 0:
        third.set_ylim(columns["f"][0] - 1, columns["f"][0] + 1)
    third.set_title("drift: " + ("-f" if wide else "f") + " in dx = f x dt + g dw")
    fourth.plot(t, columns["g"], color=COLOURS[1])
    fourth.set_yscale("log" if _wide(columns["g"]) else "linear")
    fourth.set_title("diffusion: g")
    for ax, name in ((first, "alpha, sigma"), (second, "lam (nats)"), (third, "-f" if wide else "f"), (fourth, "g")):
        ax.set(ylabel=name)
        ax.grid(alpha=0.3)
    third.set(xlabel="t (0 data, 1 noise)")
    fourth.set(xlabel="t (0 data, 1 noise)")
    figure.suptitle(title)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def image_paths(frames: np.ndarray, heads: list[str], limits: tuple[float, float], title: str, path: Path) -> None:
    """Frames (F, N, C, H, W): a row for each item, a column for each time, with `heads` above; limits: black and white."""
    count, items = frames.shape[:2]
    figure, axes = _figure(items, count, (0.95 * count, 0.95 * items + 0.9))
    low, high = limits
    shown = ((frames - low) / (high - low)).clip(0, 1).transpose(0, 1, 3, 4, 2)
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            a = shown[j, i]
            ax.imshow(a[..., 0] if a.shape[-1] == 1 else a, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
            if i == 0:
                ax.set_title(heads[j], fontsize=8)
    figure.suptitle(title, fontsize=10)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def point_paths(frames: np.ndarray, trails: np.ndarray, times: list[float], title: str, path: Path) -> None:
    """Frames (F, N, d) of points at some times; trails (F, K, M, d): the ways of the first M since the panel before."""
    count, marked = frames.shape[0], trails.shape[2]
    boxes = [np.quantile(x[:, :2], [0.003, 0.997], axis=0) for x in frames]
    widths = [(high - low).max() for low, high in boxes]
    if max(widths) <= 4 * min(widths):  # one scale for all, unless the data would be a dot on it
        boxes = [(np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0))] * count
    columns = (count + 1) // 2
    figure, axes = _figure(2, columns, (3 * columns, 6.6))
    for ax in axes.ravel()[count:]:
        ax.set_axis_off()
    for k, (ax, x, t) in enumerate(zip(axes.ravel()[:count], frames, times, strict=True)):
        low, high = boxes[k]
        centre, half = (low + high) / 2, 0.6 * (high - low).max()
        ax.plot(x[:, 0], x[:, 1], ".", color="0.7", markersize=2.5, markeredgewidth=0, rasterized=True)
        for i in range(marked):
            colour = COLOURS[i % len(COLOURS)]
            ax.plot(trails[k, :, i, 0], trails[k, :, i, 1], "-", color=colour, linewidth=0.9)
            ax.plot(x[i, 0], x[i, 1], "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.5)
        ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), xlabel="x1")
        ax.set_aspect("equal")
        ax.set_title(f"t = {t:.3g}", fontsize=10)
    for row in axes:
        row[0].set_ylabel("x2")
    more = f"; first 2 of {frames.shape[2]} coordinates" if frames.shape[2] > 2 else ""
    figure.suptitle(title + more, fontsize=11)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def score_fields(rows: dict[str, list[dict]], title: str, path: Path) -> None:
    """Fields at some levels, one row for each name: arrows `sigma score`, over the shade of the reference's log-density.

    A panel is a dict: title, centre (2,), half, log_prob (n, n), points (m, 2), arrows (m, 2) in units of 1.
    """
    count = len(next(iter(rows.values())))
    figure, axes = _figure(len(rows), count, (3.1 * count, 3.25 * len(rows) + 0.5))
    for (name, panels), line in zip(rows.items(), axes, strict=True):
        for panel, ax in zip(panels, line, strict=True):
            (cx, cy), half = panel["centre"], panel["half"]
            shade = panel["log_prob"] - panel["log_prob"].max()
            extent = (cx - half, cx + half, cy - half, cy + half)
            ax.imshow(shade.clip(-10), extent=extent, origin="lower", cmap="Greys", vmin=-10, vmax=9, aspect="equal")
            u = panel["arrows"]
            u = u * np.minimum(1, 3 / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12))
            ax.quiver(
                *panel["points"].T, *u.T, color=panel["colour"], angles="xy", scale_units="width", scale=42, width=0.006
            )
            ax.set_title(panel["title"], fontsize=9)
            ax.tick_params(labelsize=8)
        line[0].set_ylabel(f"{name}\nx2")
    for ax in axes[-1]:
        ax.set_xlabel("x1")
    figure.suptitle(title, fontsize=11)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def surfaces(rows: dict[str, list[dict]], title: str, path: Path) -> None:
    """Energies at some levels as shades with level lines, one row for each name: panels of centre, half, values (n, n), title."""
    count = len(next(iter(rows.values())))
    figure, axes = _figure(len(rows), count, (3.1 * count, 3.25 * len(rows) + 0.5))
    shade = None
    for (name, panels), line in zip(rows.items(), axes, strict=True):
        for panel, ax in zip(panels, line, strict=True):
            (cx, cy), half = panel["centre"], panel["half"]
            e = (panel["values"] - panel["values"].min()).clip(max=10)
            axis = np.linspace(-half, half, len(e))
            shade = ax.contourf(cx + axis, cy + axis, e, levels=np.linspace(0, 10, 21), cmap="cividis")
            ax.contour(cx + axis, cy + axis, e, levels=range(1, 10), colors="white", linewidths=0.5, alpha=0.6)
            ax.set_aspect("equal")
            ax.set_title(panel["title"], fontsize=9)
            ax.tick_params(labelsize=8)
        line[0].set_ylabel(f"{name}\nx2")
    for ax in axes[-1]:
        ax.set_xlabel("x1")
    figure.colorbar(shade, ax=axes, label="nats above the least, cut at 10", shrink=0.8, ticks=range(0, 11, 2))
    figure.suptitle(title, fontsize=11)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)


def densities(heat: dict, rows: dict[str, list[dict]], title: str, path: Path) -> None:
    """p_t in one dimension as a heat map over (t, x), one panel for each set of paths drawn over it.

    heat: t (T,), x (X,), density (X, T), label of x.  A panel: title, t (F,), x (F, N).
    """
    count = max(len(panels) for panels in rows.values())
    figure, axes = _figure(len(rows), count, (4.4 * count, 3.8 * len(rows) + 0.4), sharex=True, sharey=True)
    shade = None
    for (name, panels), line in zip(rows.items(), axes, strict=True):
        for ax in line[len(panels) :]:
            ax.set_axis_off()
        for panel, ax in zip(panels, line[: len(panels)], strict=True):
            shade = ax.pcolormesh(
                heat["t"], heat["x"], heat["density"], cmap="Greys", vmin=0, shading="gouraud", rasterized=True
            )
            for i, x in enumerate(panel["x"].T):
                ax.plot(panel["t"], x, color=COLOURS[i % len(COLOURS)], linewidth=1)
            ax.set(xlim=(heat["t"][0], heat["t"][-1]), ylim=(heat["x"][0], heat["x"][-1]))
            ax.set_title(panel["title"], fontsize=10)
        line[0].set_ylabel(f"{name}\n{heat['label']}" if len(rows) > 1 else heat["label"])
    for ax in axes[-1]:
        ax.set_xlabel("t (0 data, 1 noise)")
    figure.colorbar(shade, ax=axes, label=f"density of {heat['label']}", shrink=0.9)
    figure.suptitle(title, fontsize=11)
    with whole(path) as file:
        figure.savefig(file, dpi=DPI)
