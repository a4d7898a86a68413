"""Our samplers against those of diffusers, k-diffusion and azula: the same exact denoiser, start noise and grids.

    pip install -c constraints.txt '.[peers]' && pip install --no-deps k-diffusion==0.1.1.post1
    python benchmarks/samplers.py --out outputs/benchmarks

The error is the median over items of ||error||/sqrt(d) in y = x/alpha at the end of the probability-flow ODE, in float64.  Prints
our error over theirs for each algorithm that both have, on two grids, and for our one fixed choice (sampler=abm grid=scales, no
setting ever changed) over the best of theirs among all their sampler x grid pairs.  Up to 20 evaluations also for weights that
know random mixtures alone (sampler=universal grid=scales grid.small=0.25 grid.large=10) and for what `diffcli tune` fits to the
model, from other starts than those that are measured.  About eight minutes on one core.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch
from sampler_peers import Peer, Problem, peers
from torch import Tensor

from diffcli.data.mixture_file import load_mixture
from diffcli.diffusion.exact import Exact, GaussianMixture
from diffcli.diffusion.grid import Grid, Karras, Scales, UniformLam, UniformT
from diffcli.diffusion.samplers import (
    DDIM,
    DPM2,
    LMS,
    RK45,
    AdamsMoulton,
    Deis,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp2S,
    DPMpp3M,
    DPMpp3MSDE,
    DPMppSDE,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    sample,
)
from diffcli.diffusion.samplers.tuned import TunedSampler
from diffcli.diffusion.schedule import EDM, Linear
from diffcli.diffusion.sde import SDE, VE, VP
from diffcli.diffusion.tuning import fit
from diffcli.diffusion.tuning.universal import Universal

NFE = (5, 10, 20, 40, 80)
FEW = 20  # evaluations, up to which weights are fitted
STARTS, HELD = 64, 64  # to fit on, and to judge the fit by; the defaults of `diffcli tune`


class QuadraticT(Grid):
    """Uniform in sqrt(t), on which DPM-Solvers are often run."""

    def place(self, sde, first, last, u):
        return (first.sqrt() + (last.sqrt() - first.sqrt()) * u) ** 2


GRIDS = {"uniform_t": UniformT(), "quadratic_t": QuadraticT(), "uniform_lam": UniformLam(), "karras": Karras()}
OURS: tuple[Sampler, Grid] = (AdamsMoulton(), Scales())  # the one fixed choice
UNIVERSAL: tuple[Sampler, Grid] = (Universal(small=0.25, large=10.0), Scales(small=0.25, large=10.0))
SAME = {  # theirs -> ours
    "k-diffusion euler": Euler(),
    "k-diffusion heun": Heun(),
    "k-diffusion dpm_2": DPM2(),
    **{f"k-diffusion lms {n}": LMS(n) for n in (2, 3, 4)},
    "k-diffusion dpmpp_2s": DPMpp2S(),
    "k-diffusion dpmpp_sde": DPMppSDE(eta=0.0),
    "k-diffusion dpmpp_2m": DPMpp2M(),
    "k-diffusion dpmpp_2m_sde midpoint": DPMpp2MSDE(eta=0.0),
    "k-diffusion dpmpp_2m_sde heun": DPMpp2MSDE(eta=0.0, variant="heun"),
    "k-diffusion dpmpp_3m_sde": DPMpp3M(released=True),
    "k-diffusion euler_ancestral, noise": EulerAncestral(),
    "k-diffusion dpmpp_2m_sde midpoint, noise": DPMpp2MSDE(),
    "k-diffusion dpmpp_2m_sde heun, noise": DPMpp2MSDE(variant="heun"),
    "k-diffusion dpmpp_3m_sde, noise": DPMpp3MSDE(released=True),
    "azula DDIM": DDIM(),
    "azula Euler": DDIM(),
    "azula Heun": Heun(),
    **{f"azula zAB {n}": LMS(n) for n in (2, 3, 4)},
    **{f"azula zEAB {n}": Deis(n) for n in (2, 3, 4)},
    **{f"azula xEAB {n}": Deis(n, "x0") for n in (2, 3, 4)},
}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sixty_four() -> GaussianMixture:
    """Three components with full covariances in 64 dimensions."""
    a, eye = normal(7, 3, 64, 64), torch.eye(64, dtype=torch.float64)
    return GaussianMixture([1 / 6, 1 / 3, 1 / 2], normal(8, 3, 64), a @ a.mT / 64 * 0.2 + 0.1 * eye)


CASES: dict[str, tuple[Callable[[], SDE], Callable[[], GaussianMixture]]] = {
    "VP linear, d = 2": (lambda: VP(Linear()), lambda: load_mixture("four", None)),
    "VP linear, d = 64": (lambda: VP(Linear()), sixty_four),
    "VE 0.002..80, d = 2": (lambda: VE(EDM()), lambda: load_mixture("four", None)),
    "VE 0.002..80, d = 64": (lambda: VE(EDM()), sixty_four),
}


class Case:
    """One denoiser, its start noise, and the end of the ODE from there."""

    def __init__(self, name: str, items: int):
        sde, mixture = (make() for make in CASES[name])
        self.denoiser = Exact(sde, mixture)
        d = mixture.means.shape[1]
        ends = UniformLam()(sde, 1)
        self.start = sde.prior_std * normal(0, items, d)
        self.end = sample(self.denoiser, RK45(1e-10), self.start, ends, None).x / sde.alpha(ends[-1])

    def problem(self, grid: Grid, steps: int) -> Problem:
        return Problem(self.denoiser, self.start, grid(self.denoiser.sde, steps))

    def error(self, y: Tensor) -> float:
        return ((y - self.end).norm(dim=1) / self.end.shape[1] ** 0.5).median().item()

    def theirs(self, peer: Peer, grid: Grid, nfe: int) -> float:
        problem = self.problem(grid, peer.steps(nfe))
        y = peer.run(problem)
        assert problem.calls <= nfe, f"{peer.name} took {problem.calls} evaluations, not {nfe}"
        return self.error(y)

    def ours(self, sampler: Sampler, grid: Grid, nfe: int) -> float:
        return self.walked(sampler, self.problem(grid, max(1, nfe // sampler.evaluations)), nfe)

    def tuned(self, nfe: int) -> float:
        sde, shape = self.denoiser.sde, self.start.shape[1:]
        starts = sde.prior_std * normal(1, STARTS + HELD, *shape)
        found = fit(lambda rows: self.denoiser, *OURS, nfe, starts, held=HELD).tuned
        problem = Problem(self.denoiser, self.start, found.times)
        return self.walked(TunedSampler({nfe: tuple(found)}), problem, nfe)

    def walked(self, sampler: Sampler, problem: Problem, nfe: int) -> float:
        x, took = sample(self.denoiser, sampler, problem.x, problem.times, problem.noise, last="stop")
        assert took.max() <= nfe
        return self.error(x / self.denoiser.sde.alpha(problem.times[-1]))


def same_algorithms(case: Case, found: list[Peer]) -> list[dict]:
    """Our error over theirs, a row for each algorithm and grid."""
    rows = []
    for peer in (p for p in found if p.name in SAME):
        for grid in ("uniform_lam", "karras"):
            ours = (case.ours(SAME[peer.name], GRIDS[grid], nfe) for nfe in NFE)
            ratios = [o / case.theirs(peer, GRIDS[grid], nfe) for o, nfe in zip(ours, NFE, strict=True)]
            rows.append(dict(what=peer.name, grid=grid) | dict(zip(map(str, NFE), ratios, strict=True)))
    return rows


def best_of_theirs(case: Case, found: list[Peer]) -> dict[int, tuple[float, str]]:
    """The least error at each NFE, and whose it is."""
    best = {}
    for nfe in NFE:
        errors = [
            (case.theirs(peer, grid, nfe), f"{peer.name}, {name}")
            for peer in found
            if not peer.noisy
            for name, grid in GRIDS.items()
        ]
        best[nfe] = min(e for e in errors if e[0] == e[0])  # one that diverged is no number
    return best


def markdown(rows: list[dict]) -> str:
    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(out: Path, name: str, rows: list[dict]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(markdown(rows) + "\n")
    with open(out / f"{name}.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--only", choices=["same", "best"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, same, best = peers(), [], []
    for name in options.cases:
        case = Case(name, options.items)
        if options.only != "best":
            same += [dict(case=name) | row for row in same_algorithms(case, found)]
        if options.only != "same":
            theirs, mine = best_of_theirs(case, found), {nfe: case.ours(*OURS, nfe) for nfe in NFE}
            for n, (e, w) in theirs.items():
                few = n <= FEW
                fitted = dict(universal=case.ours(*UNIVERSAL, n) / e, tuned=case.tuned(n) / e) if few else {}
                row = dict(case=name, nfe=n, ours=mine[n], theirs=e, ratio=mine[n] / e, universal="", tuned="", whose=w)
                best.append(row | fitted)
            write(options.out, "samplers_best", best)
    if same:
        write(options.out, "samplers_same", same)
        off = [row for row in same if any(abs(row[str(nfe)] - 1) > 0.02 for nfe in NFE)]
        print(f"{len(same) - len(off)} of {len(same)} the same within 0.02")
        print(markdown(off) if off else "")
    if best:
        print(markdown(best))


if __name__ == "__main__":
    main()
