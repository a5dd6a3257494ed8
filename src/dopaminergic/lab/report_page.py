"""The page of a report: one HTML file that loads nothing.

The first figure and a small table come first, then the verdicts. All else is folded.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from dopaminergic.lab.claims import ENOUGH_SEEDS, Verdict
from dopaminergic.lab.figures import RESULTS, Drawing
from dopaminergic.lab.findings import NOT_MEASURED
from dopaminergic.lab.records import Record
from dopaminergic.lab.report_headline import headline
from dopaminergic.lab.report_words import environment_rows, lead, missing, of_paper, settings_rows
from dopaminergic.lab.tables import tables


def render(
    records: Sequence[Record],
    costs: dict[str, Any],
    verdicts: Sequence[Verdict],
    drawings: Sequence[Drawing],
    damaged: int = 0,
    commands: Sequence[str] = (),
) -> str:
    """The page as text; every name and string is escaped, images are within it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_part("report.html"))
    dates = sorted(record["created"] for record in records if record.get("created"))
    first = next((each for each in drawings if each.section == RESULTS), None)
    shown = tables(records)
    script = Markup(_part("report.js").strip())
    page = template.render(
        script=script,
        title="Dopamine: training without gradients, measured"
        if of_paper(records)
        else "Training, measured",
        enough=ENOUGH_SEEDS,
        lead=lead(records),
        date=dates[-1][:10] if dates else "undated",
        missing=missing(records, costs, verdicts, drawings, damaged),
        of_paper=of_paper(records),
        verdicts=[each for each in verdicts if of_paper(records) or each.verdict != NOT_MEASURED],
        first=None if first is None else _figure(first) | {"heading": first.title},
        headline=headline(records),
        tables=shown,
        widths=sorted({len(table.columns) for table in shown}),
        sections=_sections([each for each in drawings if each is not first]),
        settings=settings_rows(records),
        environment=environment_rows(records, costs, commands),
        slug=lambda title: "".join(letter if letter.isalnum() else "-" for letter in title.lower()),
    )
    return _locked(page, script)


def _locked(page: str, script: str) -> str:
    """The page with the digests of its own style and script, the only ones that browsers take."""
    style = page[page.index("<style>") + len("<style>") : page.index("</style>")]
    for name, text in (("STYLE", style), ("SCRIPT", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"{name}-DIGEST", f"sha256-{digest}", 1)
    return page


def _part(name: str) -> str:
    return resources.files("dopaminergic.lab").joinpath(name).read_text("utf-8")


def _sections(drawings: Sequence[Drawing]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The figures by section, then by task."""
    sections: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for drawing in drawings:
        group, colon, rest = drawing.title.rpartition(": ")
        figure = _figure(drawing) | {"heading": (rest[:1].upper() + rest[1:]) if colon else rest}
        sections.setdefault(drawing.section, {}).setdefault(group, []).append(figure)
    return sections


def _figure(drawing: Drawing) -> dict[str, Any]:
    source, (width, height) = _svg(drawing) if drawing.path.suffix == ".svg" else _png(drawing)
    return {
        "title": drawing.title,
        "caption": drawing.caption,
        "alt": f"{drawing.title}. {drawing.finding}",
        "wide": drawing.wide,
        "width": width,
        "height": height,
        "source": source,
    }


def _png(drawing: Drawing) -> tuple[str, tuple[int, int]]:
    with Image.open(drawing.path) as image:
        size = image.size
    return f"data:image/png;base64,{base64.b64encode(drawing.path.read_bytes()).decode()}", size


def _svg(drawing: Drawing) -> tuple[str, tuple[int, int]]:
    """As text with single quotes, which takes fewer bytes of an attribute than base64."""
    text = drawing.path.read_text("utf-8")
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    width, height = (float(each) * 150 / 72 for each in found.groups()) if found else (800, 600)
    quoted = text.replace("'", "&apos;").replace('"', "'").replace("&", "&amp;")
    body = quoted.replace("%", "%25").replace("#", "%23")
    # Within double quotes an attribute may hold all that is left.
    return Markup(f"data:image/svg+xml;charset=utf-8,{body}"), (round(width), round(height))
