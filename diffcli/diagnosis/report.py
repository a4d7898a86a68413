"""diagnosis.html and diagnosis.json: the same numbers for a person and for a program."""

import json
import sys
from pathlib import Path

from diffcli import __version__
from diffcli.diagnosis.checks import CHECKS
from diffcli.diagnosis.finding import Finding
from diffcli.diagnosis.page import page, plain
from diffcli.diagnosis.subject import Subject
from diffcli.diagnosis.svg import DECADES, Chart, Series
from diffcli.writing import write_text

HTML, JSON = "diagnosis.html", "diagnosis.json"


def about(subject: Subject, **more) -> dict:
    """The protocol: what was measured, on what, how."""
    return {
        "diffcli": __version__,
        **more,
        "weights": subject.names["model"],
        "sde": type(subject.sde).__name__,
        "items": len(subject.x0),
        "items_differentiated": subject.few,
        "dimensions": subject.d,
        "times": subject.times,
        "probes": "exact" if subject.small else subject.probes,
        "seed": subject.seed,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "evaluations": subject.nfe,
    }


def write(folder: Path, protocol: dict, found: dict[str, Finding], seconds: dict[str, float]) -> None:
    """Both files of a diagnosis; protocol is `about`'s, with model, data, split and held_out."""
    checks = {name: _json(CHECKS[name].formula, finding, seconds[name]) for name, finding in found.items()}
    _write(folder / JSON, json.dumps(protocol | {"checks": checks}, indent=2, ensure_ascii=False, allow_nan=False))
    known = "held out" if protocol["held_out"] else "not held out from training"
    probes = protocol["probes"]
    facts = [
        f"{protocol['model']}, {protocol['weights']} weights · {protocol['sde']} on {protocol['data']}",
        f"{protocol['items']} items of the {protocol['split']} split ({known}), {protocol['items_differentiated']} of them "
        f"where the model is differentiated, {'with whole Jacobians' if probes == 'exact' else f'by {probes} probes each'} · "
        f"{protocol['times']} noise levels · seed {protocol['seed']} · {protocol['dtype']} · "
        f"{protocol['evaluations']:,} evaluations of the network · {sum(seconds.values()):.0f} s",
    ]
    sections = [(name, CHECKS[name].title, CHECKS[name].formula, finding) for name, finding in found.items()]
    footer = (
        f"diffcli {__version__}. Error bars are one standard error over items. The numbers are in {JSON} too, all settings "
        "and versions in run.json."
    )
    _write(folder / HTML, page("Diagnosis", facts, sections, footer))


def _json(formula: str, finding: Finding, seconds: float) -> dict:
    words = {k: getattr(finding, k) for k in ("status", "measured", "expected", "meaning", "advice")}
    return words | {"formula": formula, "seconds": seconds, "numbers": plain(finding.numbers)}


def brief(finding: Finding) -> dict:
    """The verdict and the single numbers, without the tables."""
    numbers = {k: v for k, v in finding.numbers.items() if not (isinstance(v, list) and v and isinstance(v[0], dict))}
    return plain({"status": finding.status, "measured": finding.measured, **numbers})


def write_laws(folder: Path, laws: list, versions: dict, hardware: dict) -> None:
    """Both files of a self-check; laws: those of `self_check.run`."""
    keys = ("name", "formula", "source", "value", "bound", "passed", "seconds", "where")
    rows = [{"law": i + 1} | {key: getattr(law, key) for key in keys} for i, law in enumerate(laws)]
    broken = [law.name for law in laws if not law.passed]
    content = {
        "diffcli": __version__,
        "passed": not broken,
        "versions": versions,
        "hardware": hardware,
        "laws": plain(rows),
    }
    _write(folder / JSON, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    places = [float(i + 1) for i in range(len(laws))]
    bounds = [law.bound or sys.float_info.min for law in laws]
    share = [max(law.value / bound, DECADES) for law, bound in zip(laws, bounds, strict=True)]
    finding = Finding(
        "bad" if broken else "good",
        f"{len(laws) - len(broken)} of {len(laws)} laws hold, in {sum(law.seconds for law in laws):.0f} s",
        "each value at most its bound",
        "a law that is broken says that this machine, this torch or this build computes wrongly",
        f"report it with this page: {'; '.join(broken)}" if broken else "",
        {"laws": rows},
        [
            Chart(
                f"Value over bound, law by law ({DECADES:g}: at most)",
                "number of the law in the table",
                "value/bound",
                [Series("laws", places, share, joined=False)],
                log_y=True,
                level=1.0,
            )
        ],
    )
    facts = [", ".join(f"{k} {v}" for k, v in versions.items()), ", ".join(f"{k} {v}" for k, v in hardware.items())]
    sections = [("laws", "The laws of the installed program", "", finding)]
    _write(folder / HTML, page("Self-check", facts, sections, f"diffcli {__version__}. The numbers are in {JSON} too."))


def _write(path: Path, text: str) -> None:
    write_text(path, text + "\n")
