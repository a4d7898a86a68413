"""Cards: means and errors are those of numpy and scipy, what is written is read back, unlike protocols are told apart."""

import json
import math
from itertools import count

import numpy as np
import pytest
from scipy.stats import ttest_ind

from diffcli.errors import UsageError
from diffcli.metrics.card import Card, Figure, check_alike, differing, flat, not_told_apart
from diffcli.metrics.card_text import markdown, rounded
from diffcli.metrics.cards_table import csv_text, table


def figure(values, better="lower", name="m", floor=(), **more):
    return Figure(name, name.upper(), better, list(values), list(floor), **more)


def card(*figures, n=100, **more):
    protocol = {"data": {"set": "MNIST", "split": "test"}, "n": n, "features": {"name": "pixels", "dim": 784}}
    draw = {"sampler": {"name": "DDIM", "eta": 0}, "nfe": {"mean": 20.0}, "repeats": 3}
    parts = {
        "protocol": protocol,
        "model": {"weights": "ema"},
        "draw": draw,
        "figures": list(figures),
        "title": "a model",
    }
    return Card(**parts | more)


def test_mean_and_sd_are_those_of_numpy():
    values = np.random.default_rng(0).normal(1e6, 1e-3, 7).tolist()
    f = figure(values, floor=values[:2])
    assert f.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert f.sd == pytest.approx(np.std(values, ddof=1), rel=1e-6)
    assert f.floor_mean == pytest.approx(np.mean(values[:2]), rel=1e-14)
    assert f.floor_sd == pytest.approx(np.std(values[:2], ddof=1), rel=1e-6)
    assert figure([3.0]).sd is None
    assert figure([3.0]).floor_mean is None


@pytest.mark.parametrize("seed", range(20))
def test_a_tie_is_what_welchs_test_does_not_reject(seed):
    """The best by mean, and whom scipy's two-sided test at 5 % leaves beside it."""
    rng = np.random.default_rng(seed)
    sizes, sds = rng.integers(2, 6, 6), rng.uniform(0.3, 3, 6)
    draws = {str(i): rng.normal(0.8 * i, sds[i], sizes[i]) for i in range(6)}
    for better, sign in (("lower", 1), ("higher", -1)):
        found = not_told_apart({name: figure(sign * x, better) for name, x in draws.items()})
        best = min(draws, key=lambda name: draws[name].mean())
        p = {name: ttest_ind(x, draws[best], equal_var=False).pvalue for name, x in draws.items()}
        assert found[0] == best
        assert set(found) == {best} | {name for name in draws if name != best and p[name] >= 0.05}


def test_without_errors_only_the_best_mean_is_best():
    assert not_told_apart({"a": figure([1.0]), "b": figure([1.0 + 1e-12]), "c": figure([0.0, 4.0])}) == ["a"]
    assert not_told_apart({"a": figure([2, 2]), "b": figure([2, 2]), "c": figure([3, 3])}) == ["a", "b"]
    assert not_told_apart({}) == []


def test_what_is_written_is_read(tmp_path):
    written = card(
        figure([1.5, 2.5], floor=[1.0, 1.1], what_floor="real", warning="few"), memorisation={"memorised": False}
    )
    (tmp_path / "card.json").write_text(written.dump())
    for path in (tmp_path, tmp_path / "card.json"):
        assert Card.read(path) == written
    node = json.loads(written.dump())["figures"][0]
    assert (node["mean"], node["floor_mean"]) == (2.0, 1.05)
    assert node["sd"] == math.sqrt(0.5)


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "no card.json"),
        ("{", "no JSON"),
        ("[1]", "no card"),
        ('{"status": "finished"}', "no card"),
        ('{"card": 99}', "version 99"),
        ('{"card": 1}', "part missing"),
        ('{"card": 1, "figures": 3}', "part missing"),
    ],
)
def test_what_is_no_card_is_refused_in_a_sentence(tmp_path, content, said):
    if content is not None:
        (tmp_path / "card.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        Card.read(tmp_path)


@pytest.mark.parametrize("values", [[], ["1"], [math.nan], None])
def test_a_card_whose_values_are_no_numbers_is_refused(tmp_path, values):
    node = json.loads(card(figure([1.0])).dump())
    node["figures"][0]["values"] = values
    (tmp_path / "card.json").write_text(json.dumps(node))
    with pytest.raises(UsageError, match="part missing or of another type"):
        Card.read(tmp_path)


def test_unlike_protocols_name_each_field_that_differs():
    """Any single field, any one of the cards; the draw and the model may differ."""
    same = {"a": card(), "b": card(draw={"sampler": {"name": "Heun"}, "seed": 5}, model={"weights": "raw"})}
    check_alike(same)
    numbers = count()
    for key in flat(card().protocol):
        other = card()
        *path, last = key.split(".")
        node = other.protocol
        for part in path:
            node = node[part]
        node[last] = f"other{next(numbers)}"
        for cards in ({"a": card(), "b": other}, {"a": card(), "b": card(), "c": other}, {"a": other, "b": card()}):
            assert list(differing(cards)) == [key]
            with pytest.raises(UsageError, match="cannot be compared") as refused:
                check_alike(cards)
            assert f"{key} (" in refused.value.message
            assert node[last] in refused.value.message
        del node[last]
        assert list(differing({"a": card(), "b": other})) == [key]


@pytest.mark.parametrize(
    "mean, sd, text",
    [
        (12.3132, 0.1527, "12.31 ± 0.15"),
        (46012.3, 118.0, "46012 ± 118"),
        (0.00084, 0.00069, "0.00084 ± 0.00069"),
        (1.0, 0.0, "1 ± 0"),
        (3.14159, None, "3.142"),
        (None, None, "–"),
        (2.5e-9, 1.5e-10, "2.5e-09 ± 1.5e-10"),
        (-0.5, 9.96, "-0.5 ± 10.0"),
    ],
)
def test_numbers_have_as_many_places_as_their_error_allows(mean, sd, text):
    assert rounded(mean, sd) == text


def test_the_markdown_has_every_field_and_whole_tables():
    text = markdown(card(figure([1.0, 2.0], name="x"), figure([3.0, 3.5], "higher", "y|z", warning="too few")))
    for key, value in flat(card().protocol).items():
        assert f"| `{key}` | {value} |" in text
    assert "warning: Y|Z: too few" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4), line


def test_the_table_of_cards_marks_the_best_of_each_measure():
    a = card(figure([1.0, 1.1, 0.9], name="low"), figure([5.0, 5.1, 4.9], "higher", "high"))
    b = card(figure([9.0, 9.1, 8.9], name="low"), figure([5.05, 5.1, 4.9], "higher", "high"))
    head, low, high = table({"a": a, "b": b})
    assert head == ["measure", "a", "b", "real items"]
    assert [cell.endswith("*") for cell in low[1:3]] == [True, False]
    assert [cell.endswith("*") for cell in high[1:3]] == [True, True]
    head, *rows = (line.split(",") for line in csv_text({"a": a, "b": b}).splitlines())
    first = dict(zip(head, rows[0], strict=True))
    assert (first["card"], float(first["low"]), float(first["high"])) == ("a", 1.0, 5.0)
    assert float(first["low_sd"]) == pytest.approx(0.1)
    assert first["draw.sampler.name"] == "DDIM"
