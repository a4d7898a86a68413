"""How far a loss stands out from those before it."""

import math
import statistics
from collections import deque

KEPT = 100  # losses that one is compared with
FEWEST = 10  # below which nothing is said
SCALE = 1.4826  # of the median absolute deviation: a standard deviation, where the losses are normal


class LossSpike:
    """`(loss - m) / (1.4826 median|l_i - m|)`, m the median of the last 100 losses l_i: in standard deviations that a spike
    itself does not widen, for losses of any sign and size.  A row of metrics.csv has the largest since the row before.
    """

    def __init__(self):
        self.losses: deque[float] = deque(maxlen=KEPT)
        self.largest: float | None = None

    def see(self, loss: float) -> float | None:
        """Take the loss of a step; the largest figure since `reset`, None while there are fewer than 10 losses."""
        if len(self.losses) >= FEWEST:
            middle = statistics.median(self.losses)
            spread = SCALE * statistics.median(abs(value - middle) for value in self.losses)
            if spread > 0:
                self.largest = max((loss - middle) / spread, -math.inf if self.largest is None else self.largest)
        self.losses.append(loss)
        return self.largest

    def reset(self) -> None:
        self.largest = None

    def state(self) -> dict:
        """Plain data for a checkpoint."""
        return {"losses": list(self.losses), "largest": self.largest}

    def restore(self, state: dict) -> None:
        self.losses.clear()
        self.losses.extend(state["losses"])
        self.largest = state["largest"]
