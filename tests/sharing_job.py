"""A task in a file of its own, which other processes can import."""

import os
import signal

from diffcli.errors import NumericalError


class Square:
    """Squares a job; says where it was done.  A job below 0 fails, one above 100 ends its process."""

    def to(self, device):
        self.device = device

    def __call__(self, job):
        if job < 0:
            raise NumericalError(f"job {job} is below 0", "more")
        if job > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return job**2, os.getpid()
