"""Running commands as a user does, in this process, in a folder of their own."""

import signal
from pathlib import Path

import pytest
import torch

for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(_signal) is signal.SIG_IGN:  # as of what a shell starts in the background; the tests send them
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

torch.set_num_threads(1)  # the suite runs in as many processes as there are cores

SHARED = Path(__file__).resolve().parents[2] / "shared"


class Result:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """cli("train", "sde=vp", …) -> Result, run in tmp_path."""
    from diffcli.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Result:
        capfd.readouterr()
        code = main([str(a) for a in argv])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run
