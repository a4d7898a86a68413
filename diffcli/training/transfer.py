"""Numbers to and from the device of a training, without waiting for it."""

import torch
from torch import Tensor


def sent(a: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; to a GPU from pinned memory, so that the host goes on at once."""
    if device.type == "cuda" and a.device.type == "cpu" and not a.is_pinned():
        a = a.pin_memory()
    return a.to(device, non_blocking=True)


class Reading:
    """Numbers on their way from the device; `read` waits for those alone, and not for what the device was given after them."""

    def __init__(self, numbers: Tensor):
        self._host, self._arrived = numbers, None
        if numbers.device.type == "cuda":
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()
