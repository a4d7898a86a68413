"""diffcli compare cards=…: a table of cards of one protocol; anything else is one sentence and code 2."""

import csv

import pytest

from diffcli.metrics.card import Card, Figure


@pytest.fixture
def write(tmp_path):
    """write(folder, values of one measure, n=…) makes a card there."""

    def one(folder, values, n=100, **more):
        figures = [
            Figure(
                "frechet", "Frechet distance (pixels)", "lower", values, [1.0, 1.2], "real", more.get("warning", "")
            ),
            Figure("recall", "recall", "higher", [0.5] * len(values), [0.9]),
        ]
        protocol = {"data": {"set": "MNIST", "split": "test"}, "n": n}
        draw = {"sampler": {"name": "DDIM"}, "nfe": {"mean": 20.0, "min": 20, "max": 20}, "repeats": len(values)}
        card = Card(protocol, {"source": folder, "weights": "ema"}, draw, figures, title=f"model {folder}")
        card.memorisation = more.get("memorisation", {})
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "card.json").write_text(card.dump())

    return one


def test_the_best_is_marked_with_its_ties(cli, tmp_path, write):
    write("runs/a", [3.0, 3.1, 3.2])
    write("runs/b", [3.05, 3.1, 3.25], memorisation={"memorised": True, "text": "copies!"})
    write("runs/c", [4.0, 4.1, 4.2], warning="too few samples")
    write("other", [1.0, 1.1], n=200)
    (tmp_path / "runs/empty").mkdir()
    done = cli("compare", "cards=runs/*", "out=table")
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "table").iterdir()} == {"run.json", "compare.csv", "compare.md", "compare.png"}
    line = next(line for line in done.out.splitlines() if line.startswith("Frechet"))
    assert line.split()[4:] == [
        "3.10",
        "±",
        "0.10*",
        "3.13",
        "±",
        "0.10*",
        "4.10",
        "±",
        "0.10",
        "!",
        "1.10",
        "±",
        "0.14",
    ]
    for said in ("b: copies!", "too few samples (c)", "c: model runs/c on", "DDIM, NFE 20, ema weights"):
        assert said.removesuffix(" on") in done.out
        assert said.removesuffix(" on") in (tmp_path / "table/compare.md").read_text()
    with (tmp_path / "table/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["card"], float(r["frechet"]), float(r["frechet_floor"])) for r in rows] == [
        ("a", pytest.approx(3.1), 1.1), ("b", pytest.approx(9.4 / 3), 1.1), ("c", pytest.approx(4.1), 1.1)
    ]  # fmt: skip
    assert rows[0]["draw.repeats"] == "3"


def test_a_single_repeat_has_no_error_bar(cli, tmp_path, write):
    write("a", [3.0])
    write("b/e", [3.01, 3.4])
    done = cli("compare", "cards=[a/card.json,b/e]", "out=table")
    assert done.code == 0, done.err
    assert "no error bar" in done.out
    assert "3*" in done.out
    assert (tmp_path / "table/compare.csv").read_text().splitlines()[1].startswith("a,3.0,,1.1")


@pytest.mark.parametrize(
    "words, said",
    [
        (("cards=[a,b]",), "their protocols differ in n (100, 200)"),
        (("cards=[a,c,b]",), "their protocols differ in n (100, 200)"),
        (("cards=[a]",), "1 card,"),
        (("cards=[]",), "0 cards"),
        (("cards=a",), "1 card,"),
        (("cards=[a,a/card.json]",), "twice"),
        (("cards=[a,gone]",), "gone: No such file"),
        (("cards=[a,empty]",), "no card.json"),
        (("cards=[a,text.json]",), "is no JSON"),
        (("cards=[a,foreign.json]",), "is no card"),
        (("cards=nothing*",), "nothing of that name"),
        (("cards=5",), "cards must be"),
        (("cards=[a,c]", "ckpt=x"), "would draw new ones"),
        (("cards=[a,c]", "network=exact"), "would draw new ones"),
        (("cards=[a,c]", "seed=-1"), "at least 0"),
        (("cards=[a,c]", "out=a/card.json"), "is a file"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(cli, tmp_path, write, words, said):
    write("a", [3.0, 3.1])
    write("b", [3.0, 3.1], n=200)
    write("c", [3.0, 3.1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("a text")
    (tmp_path / "foreign.json").write_text('{"figures": []}')
    before = sorted(tmp_path.rglob("*"))
    done = cli("compare", *words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert said in done.err
    assert done.err.count("\n") <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_writes_nothing(cli, tmp_path, write):
    write("a", [3.0, 3.1])
    write("c", [3.0, 3.1])
    before = sorted(tmp_path.rglob("*"))
    done = cli("compare", "cards=[a,c]", "dry_run=true")
    assert (done.code, sorted(tmp_path.rglob("*"))) == (0, before)
    assert "would compare 2 cards: a, c" in done.out
