"""How faults are injected: commands in sessions of their own, and what is said of each."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEY = "fault"  # of a share, which tests/conftest.py adds up
sys.path.insert(0, str(Path(__file__).parent))  # `from fault_lines import …`, whatever pytest's import mode is


@pytest.fixture
def injected(record_property):
    """injected("kill -9 while saving", n=30, survived=30, lost=1.2, expected="…"): one row's share, said after the checks.

    n: faults injected; survived: of those, how many ended as `expected` says; lost: seconds of work that had to be done again;
    stock: what the part that is usually used does under the same fault, where a test has shown it.
    """

    def say(name: str, expected: str, n: int = 1, survived: int = 1, lost: float = 0.0, stock: str = "") -> None:
        record_property(
            KEY, {"name": name, "expected": expected, "n": n, "survived": survived, "lost": lost, "stock": stock}
        )

    return say


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "/tests/faults/" in item.path.as_posix():
            item.add_marker(pytest.mark.fault)


class Command:
    """A command line that runs in a session of its own."""

    def __init__(self, server, cwd: Path, argv: tuple[str, ...], faults: str):
        self.server, self.log = server, cwd / "log.txt"
        order = {"argv": list(argv), "cwd": str(cwd), "log": str(self.log), "faults": faults}
        self.code: int | None = None
        self.pid = self._ask(order)

    def _ask(self, order) -> int:
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """The exit code; -n after a signal that was not answered."""
        if self.code is None:
            self.code = self._ask({"wait": self.pid})
        return self.code

    def kill(self, signum: int = signal.SIGKILL, group: bool = False) -> None:
        os.killpg(self.pid, signum) if group else os.kill(self.pid, signum)

    def until(self, condition) -> None:
        """Wait for a condition; the command must not end before it holds."""
        end = time.monotonic() + 120
        while not condition():
            with contextlib.suppress(FileNotFoundError):
                state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
                assert state != "Z", self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.005)

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture(scope="session")
def start_in():
    """start_in(folder, "train", …, faults="…") -> Command; what still runs at the end is killed."""
    script = Path(__file__).parent / "fork_server.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    commands: list[Command] = []

    def start(folder: Path, *argv: str, faults: str = "") -> Command:
        commands.append(Command(server, folder, argv, faults))
        return commands[-1]

    yield start
    for command in commands:
        if command.code is None:
            with contextlib.suppress(ProcessLookupError):
                command.kill(group=True)
    server.kill()
    server.wait()


@pytest.fixture
def start(start_in, tmp_path):
    """The same in tmp_path."""
    return functools.partial(start_in, tmp_path)
