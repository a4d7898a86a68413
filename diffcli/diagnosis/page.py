"""One self-contained HTML page: no request leaves it, light and dark, on a phone too."""

import math
from html import escape

from diffcli.diagnosis.finding import Finding
from diffcli.diagnosis.svg import Chart, draw, mark

WORDS = {
    "good": "as it should be",
    "look": "worth a look",
    "bad": "clearly off",
    "measured": "measured",
    "left out": "left out",
}
STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1b1d1f;--soft:#62676c;--line:#dcdfe2;--card:#fff;--level:#8a8f94;
--s0:#0b62b8;--s1:#c2410c;--s2:#12805c;--s3:#8b3fb8;--s4:#8a6d00;--s5:#4b5563;
--good:#12724f;--look:#8a5a00;--bad:#b3261e;--measured:#0b62b8;--out:#62676c}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e6e8ea;--soft:#a0a6ac;--line:#33383d;--card:#1c1f23;--level:#80868c;
--s0:#6cb2f7;--s1:#ff9a62;--s2:#5fd0a2;--s3:#d19af2;--s4:#e3c34d;--s5:#b4bcc5;
--good:#5fd0a2;--look:#f0b957;--bad:#ff8a80;--measured:#6cb2f7;--out:#a0a6ac}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.25rem 1rem 4rem}h1{font-size:1.5rem;margin:.2rem 0 .6rem}h2{font-size:1.15rem;margin:0}
.facts{color:var(--soft);margin:0 0 1rem;overflow-wrap:anywhere}a{color:inherit}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0}
section>header{display:flex;flex-wrap:wrap;gap:.3rem .7rem;align-items:baseline}
.status{font-size:.8rem;font-weight:600;border:1.5px solid;border-radius:1rem;padding:0 .6rem;white-space:nowrap}
.good{color:var(--good)}.look{color:var(--look)}.bad{color:var(--bad)}
.measured{color:var(--measured)}.out{color:var(--out)}
code{font:.85rem/1.5 ui-monospace,monospace;color:var(--soft);overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .9rem;margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 1.5rem}
figure{margin:.5rem 0 0;max-width:34rem;min-width:0}figcaption{font-weight:600;font-size:.95rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:0;margin:.1rem 0 0;font-size:.88rem}
.legend svg{width:26px;height:12px;vertical-align:-1px;margin-right:.35rem;display:inline}
svg{width:100%;height:auto;display:block}svg text{fill:var(--fg);font-size:14px;font-family:system-ui,sans-serif}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.level{stroke:var(--level);stroke-dasharray:2 4;stroke-width:1.5}
.line{fill:none;stroke:var(--c);stroke-width:2}.dashed{stroke-dasharray:6 4}
.error{stroke:var(--c);stroke-width:1.5}.mark{fill:var(--c)}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}
.summary td{text-align:left;white-space:normal;vertical-align:top}
details{margin-top:.7rem}summary{cursor:pointer;color:var(--soft);font-size:.9rem}footer{color:var(--soft);font-size:.9rem}
@media (max-width:34rem){dl{grid-template-columns:1fr;gap:0}dt{font-size:.85rem}dd{margin:0 0 .4rem}.summary .text{display:none}}
"""


def page(title: str, facts: list[str], checks: list[tuple[str, str, str, Finding]], footer: str) -> str:
    """checks: (name, title, formula, finding) of each."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
    )
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="facts">{escape(fact)}</p>' for fact in facts)]
    body.append(_summary(checks))
    body += [_section(*check, alone=len(checks) == 1) for check in checks]
    return head + "\n".join(body) + f"\n<footer>{escape(footer)}</footer></main></body></html>\n"


def _status(finding: Finding) -> str:
    kind = "out" if finding.status == "left out" else finding.status
    return f'<span class="status {kind}">{WORDS[finding.status]}</span>'


def _summary(checks) -> str:
    rows = [
        f'<tr><td><a href="#{name}">{escape(title)}</a></td><td>{_status(f)}</td><td class="text">{escape(f.measured)}</td></tr>'
        for name, title, _, f in checks
    ]
    return f'<section><div class="wide"><table class="summary">{"".join(rows)}</table></div></section>'


def _section(name: str, title: str, formula: str, finding: Finding, alone: bool) -> str:
    parts = [f'<section id="{name}"><header><h2>{escape(title)}</h2>{_status(finding)}</header>']
    if formula:
        parts.append(f"<code>{escape(formula)}</code>")
    lines = {
        "measured": finding.measured, "should be": finding.expected, "means": finding.meaning, "to do": finding.advice,
    }  # fmt: skip
    lines = {"why": finding.measured} if finding.status == "left out" else lines
    parts.append("<dl>" + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in lines.items() if v) + "</dl>")
    if finding.charts:
        parts.append('<div class="charts">' + "".join(map(_figure, finding.charts)) + "</div>")
    for key, value in finding.numbers.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            parts.append(
                f"<details{' open' if alone else ''}><summary>numbers: {escape(key)}</summary>{_table(value)}</details>"
            )
    return "\n".join([*parts, "</section>"])


def _figure(chart: Chart) -> str:
    legend = ""
    if len(chart.series) > 1:
        items = "".join(f"<li>{_key(i, s)}{escape(s.name)}</li>" for i, s in enumerate(chart.series))
        legend = f'<ul class="legend">{items}</ul>'
    return f"<figure><figcaption>{escape(chart.title)}</figcaption>{legend}{draw(chart)}</figure>"


def _key(i: int, series) -> str:
    line = (
        f'<line class="line{" dashed" if series.dashed else ""}" x1="0" x2="26" y1="6" y2="6"/>'
        if series.joined
        else ""
    )
    point = "" if series.dashed else mark(i, 13, 6)
    return f'<svg viewBox="0 0 26 12" aria-hidden="true"><g class="s{i % 6}">{line}{point}</g></svg>'


def _table(found: list[dict]) -> str:
    head = "".join(f"<th>{escape(str(key))}</th>" for key in found[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row.values()) + "</tr>" for row in found)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return "–" if value is None else escape(str(value))


def plain(value):
    """What JSON can hold: no nan, which it lacks, and of a value with its error both by name."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple) and len(value) == 2:
        return {"value": plain(value[0]), "standard_error": plain(value[1])}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
