"""The table of `make faults`: what was injected, how often, and what came of it."""

import pytest

KEY = "fault"


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


def rows(reports) -> list[dict]:
    """Shares of one name added up; a failed test of the folder is a row of its own."""
    found: dict[str, dict] = {}
    for report in reports:
        for key, share in report.user_properties:
            if key != KEY:
                continue
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


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "/tests/faults/" in item.path.as_posix():
            item.add_marker(pytest.mark.fault)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    found = rows([r for r in reports if r.when == "call"])
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(found))
