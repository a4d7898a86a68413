"""`diffcli samplers` lists every sampler as it declares itself, and the README holds that table.

python tests/commands/test_samplers_command.py [FILE]      writes it anew into FILE, the README
"""

import sys
from pathlib import Path

from diffcli.commands.options import names, option
from diffcli.commands.samplers import HEAD, described, markdown, rows
from diffcli.commands.walk import build_sampler

README = Path(__file__).resolve().parents[2] / "README.md"
MARK, END = "<!-- table: samplers -->\n", "<!-- end -->"


def lines() -> list[str]:
    return markdown(rows({name: described(name, None) for name in names("sampler")}))


def test_every_sampler_has_its_row(cli):
    done = cli("samplers", "format=markdown")
    assert done.code == 0, done.err
    assert done.out.splitlines() == lines()
    table = {
        row[0]: dict(zip(HEAD, row, strict=True)) for row in rows({n: described(n, None) for n in names("sampler")})
    }
    assert set(table) == set(names("sampler"))
    for name, row in table.items():
        sampler = build_sampler(option("sampler", name))
        assert row["kind"] == sampler.kind
        assert row["order"].split()[0] == ("–" if sampler.order is None else str(sampler.order))
        assert row["evaluations a step"] == ("adaptive" if sampler.evaluations is None else str(sampler.evaluations))
    assert table["deis"]["order"] == "3 (1-4)"
    assert table["deis"]["declared for"] == "grid=uniform_lam starter=rk"
    assert table["unipc"]["order"] == "4 (p + 1)"
    assert table["rk45"]["declared for"] == "any grid"
    assert table["heun"]["what it is"] == "Heun on the PF-ODE, EDM's"
    assert "no order on tables" in table["euler_maruyama"]["SDEs"]
    assert table["ancestral"]["SDEs"] == "all"


def test_the_users_samplers_are_there(cli, tmp_path):
    (tmp_path / "mine/sampler").mkdir(parents=True)
    file = tmp_path / "mine/sampler/slow.yaml"
    file.write_text("# Euler in t (order 1, 1 evaluation a step)\ndefaults: [euler, _self_]\nvariable: t\n")
    done = cli("samplers", "--config-dir", str(tmp_path / "mine"))
    assert done.code == 0, done.err
    (row,) = (line.split("  ") for line in done.out.splitlines() if line.startswith("slow "))
    assert [cell.strip() for cell in row if cell.strip()] == [
        "slow", "ode", "1", "grid=uniform_lam", "1", "all; no order on tables (ddpm, ncsn)", "Euler in t",
    ]  # fmt: skip
    assert len(done.out.splitlines()) == 2 + len(names("sampler"))
    file.write_text("_target_: nowhere.Sampler\n")
    done = cli("samplers", "--config-dir", str(tmp_path / "mine"))
    assert done.code == 2
    assert done.err.startswith("error: sampler=slow: ")


def test_what_is_not_there_is_refused(cli, tmp_path):
    for word, sentence in (("format=html", "'html'"), ("out=x", "writes no run"), ("name=ddim", "'name'")):
        done = cli("samplers", word)
        assert done.code == 2
        assert sentence in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_readme_holds_the_table():
    """Where this fails: python tests/commands/test_samplers_command.py."""
    held = README.read_text().partition(MARK)[2].partition(END)[0]
    assert held.splitlines() == lines()


def test_it_is_written_between_the_marks(tmp_path):
    file = tmp_path / "R.md"
    file.write_text(f"before\n{MARK}old\n{END}\nafter\n")
    main(file)
    assert file.read_text() == f"before\n{MARK}" + "\n".join(lines()) + f"\n{END}\nafter\n"


def main(readme: Path) -> None:
    """Put the table into a file between its marks."""
    before, mark, after = readme.read_text().partition(MARK)
    assert mark, f"no mark {MARK.strip()} in {readme}"
    readme.write_text(before + mark + "\n".join(lines()) + "\n" + after[after.index(END) :])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else README).resolve())
