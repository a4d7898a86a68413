"""What every noise schedule is: t -> l(t), VP's half log-SNR, so that every schedule serves every SDE."""

from abc import abstractmethod

from torch import Tensor, nn


class Schedule(nn.Module):
    """A strictly decreasing function l(t) on t in [0, 1], and its inverse; both map float64 to float64, elementwise.

    `l` is VP's half log-SNR, `alpha^2 = sigmoid(2 l)`, `sigma^2 = sigmoid(-2 l)`; the SDE says what it means elsewhere
    (VE: `sigma = e^-l`).  `t_min` and `t_max` bound the times at which l is finite and alpha is not 0.
    Sampling stops at t_stop unless a grid says otherwise.
    `times` holds the training levels of a discrete chain, increasing, else None.
    """

    t_min: float = 0.0
    t_max: float = 1.0
    t_stop: float = 1e-3
    times: Tensor | None = None

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """l(t)."""

    @abstractmethod
    def inverse(self, l: Tensor) -> Tensor:  # noqa: E741 - the notation of the papers
        """The time at which the schedule has the value l."""
