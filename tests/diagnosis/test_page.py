"""The page: one file that asks for nothing, says all that the JSON says, and whose charts stand where their values are."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from diffcli.diagnosis.finding import Finding
from diffcli.diagnosis.law import Law
from diffcli.diagnosis.page import page, plain
from diffcli.diagnosis.report import write_laws
from diffcli.diagnosis.svg import Chart, Series, draw


class Balanced(HTMLParser):
    """Every tag that opens closes."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_is_whole_and_asks_for_nothing():
    chart = Chart("a <title>", "x & y", "y", [Series("s<1>", [1.0, 2.0], [1.0, float("nan")], [0.1, 0.1])])
    finding = Finding("bad", "a <b>", "c & d", "e", "f", {"levels": [{"t": 0.5, "value": None}], "one": 1.0}, [chart])
    text = page("Title", ["<fact>"], [("name", "A check", "x < y", finding)], "foot")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    shown = " ".join(parser.text)
    for part in ("<fact>", "a <b>", "c & d", "x < y", "foot", "0.5"):
        assert part in shown
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", text)
    assert not re.search(r"url\(|@import|<script|<link|<img", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {
        "http://www.w3.org/2000/svg"
    }  # the name of a format, not a place


def marks(chart):
    root = ElementTree.fromstring(draw(chart))
    return [(float(e.get("cx")), float(e.get("cy"))) for e in root.iter() if e.tag.endswith("circle")]


def test_marks_stand_where_their_values_are():
    places = marks(Chart("t", "x", "y", [Series("s", [0.0, 1.0, 3.0], [2.0, 4.0, 8.0])]))
    (x0, y0), (x1, y1), (x2, y2) = places
    assert abs((x2 - x0) - 3 * (x1 - x0)) < 0.3  # the places are written to a tenth
    assert abs((y0 - y2) - 3 * (y0 - y1)) < 0.3
    assert y2 < y0
    (_, a), (_, b), (_, c) = marks(Chart("t", "x", "y", [Series("s", [0, 1, 2], [0.01, 0.1, 1.0])], log_y=True))
    assert abs((a - b) - (b - c)) < 0.3


def test_what_cannot_be_drawn_is_left_out():
    chart = Chart("t", "x", "y", [Series("s", [1.0, 2.0, 3.0], [0.0, float("nan"), 1.0], [0.5, 0.5, 2.0])], log_y=True)
    assert len(marks(chart)) == 1
    assert "nan" not in draw(chart)
    assert draw(Chart("t", "x", "y", [Series("s", [1.0], [0.0])], log_y=True))
    assert draw(Chart("t", "x", "y", [Series("s", [], [])]))


def test_json_has_no_nan():
    assert plain({"a": (1.0, float("nan")), "b": [float("inf"), 2]}) == {
        "a": {"value": 1.0, "standard_error": None},
        "b": [None, 2],
    }


def test_every_law_of_a_self_check_is_drawn_and_listed(tmp_path):
    """One far within its bound, and one without any room, at the low end of the axis."""
    values = [(1e-3, 1e-2), (1e-30, 1.0), (0.0, 0.0)]
    laws = [Law(f"law {v}", "a = b", "", v, bound, True, 0.1, "there") for v, bound in values]
    write_laws(tmp_path, laws, {}, {})
    text = (tmp_path / "diagnosis.html").read_text()
    assert text.count("<circle") == len(laws)
    assert "<details open>" in text
    assert [row["law"] for row in json.loads((tmp_path / "diagnosis.json").read_text())["laws"]] == [1, 2, 3]
