"""What a check found: numbers with their errors, a verdict in words, and how to draw it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from diffcli.diagnosis.svg import Chart

Status = Literal["good", "look", "bad", "measured", "left out"]  # measured: there is no value that it should have


@dataclass
class Finding:
    """One check's result.  measured, expected, meaning, advice: a sentence each; numbers: what the JSON holds."""

    status: Status
    measured: str
    expected: str = ""
    meaning: str = ""
    advice: str = ""
    numbers: dict = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)


class Check(ABC):
    """Measures one property.  name: in checks=[…]; title: a line; formula: what is computed."""

    name: str
    title: str
    formula: str

    def leave_out(self, subject) -> str:
        """Why it does not apply to this model, in a sentence; empty where it does."""
        return ""

    @abstractmethod
    def run(self, subject) -> Finding: ...

    def __call__(self, subject) -> Finding:
        reason = self.leave_out(subject)
        return Finding("left out", reason) if reason else self.run(subject)


def mean_se(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of values (n,); the error of a single one is nan."""
    values = values.double()
    se = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return values.mean().item(), se


def ratio_se(above: Tensor, below: Tensor) -> tuple[float, float]:
    """`sum(above)/sum(below)` over n independent items and its standard error, by linearising: that of
    `mean(above - r below) / mean(below)`.  Cochran 1977, sec. 2.11.
    """
    above, below = above.double(), below.double()
    r = (above.mean() / below.mean()).item()
    return r, mean_se((above - r * below) / below.mean())[1]


def pm(value: float, error: float, digits: int = 3) -> str:
    """`value ± error`, the error where there is one."""
    text = f"{value:.{digits}g}"
    return f"{text} ± {error:.2g}" if error == error else text


def rows(**columns: Iterable) -> list[dict]:
    """Columns of equal length as one dict a row, numbers as Python's."""
    lists = [c.tolist() if isinstance(c, Tensor) else list(c) for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def stacked(pairs: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Pairs of a value and its error as two lists."""
    values, errors = torch.tensor(list(pairs), dtype=torch.float64).T.tolist()
    return values, errors


def no_mean(subject) -> str:
    """Why x0_hat means nothing in this model; empty where it does."""
    if not subject.denoiser.posterior_mean:
        return "the model is a free field (cnf, source): its x0_hat is no posterior mean, and it has no score"
    if subject.sde.sigma(torch.tensor(subject.sde.t_min, dtype=torch.float64)).item() == 0:
        return "without noise (level.sigma=0) nothing is denoised"
    return ""


def no_process(subject) -> str:
    """Why there is no way from data to noise; empty where there is one."""
    return "" if subject.sde.is_process else "a model of one noise level (levels=one) has no way from data to noise"
