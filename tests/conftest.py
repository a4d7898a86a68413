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


def rows(reports) -> list[dict]:
    """Shares of one name added up; a failed test of a fault, which has none, is a row of its own."""
    found: dict[str, dict] = {}
    for report in reports:
        shares = [share for key, share in report.user_properties if key == "fault"]
        if report.failed and not shares and "tests/faults/" in report.nodeid:
            name = report.nodeid.rpartition("tests/faults/")[2]
            shares = [{"name": name, "expected": "the test failed", "n": 1, "survived": 0, "lost": 0.0, "stock": ""}]
        for share in shares:
            row = found.setdefault(share["name"], share | {"n": 0, "survived": 0, "lost": 0.0})
            for name in ("n", "survived", "lost"):
                row[name] += share[name]
            row["stock"] = row["stock"] or share["stock"]
    return list(found.values())


def table(found: list[dict]) -> str:
    """Markdown."""
    lines = ["| fault | injected | as expected | work lost | expected | stock parts |", "|---|---|---|---|---|---|"]
    for row in sorted(found, key=lambda r: r["name"]):
        lost = f"{row['lost']:.1f} s" if row["lost"] else "none"
        lines.append(
            f"| {row['name']} | {row['n']} | {row['survived']} | {lost} | {row['expected']} | {row['stock'] or '–'} |"
        )
    n, survived = (sum(row[k] for row in found) for k in ("n", "survived"))
    lines.append(f"| **all** | **{n}** | **{survived}** | {sum(row['lost'] for row in found):.1f} s | | |")
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of `make faults`: what was injected, how often, and what came of it."""
    found = rows([r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"])
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(found))
