"""The report from the records of a folder.

It is one self-contained HTML page, a summary for programs, and the figures.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dopaminergic.lab import statistics
from dopaminergic.lab.claims import Verdict, judge
from dopaminergic.lab.figures import draw_all
from dopaminergic.lab.records import (
    REQUIRED,
    Record,
    plain,
    read_costs,
    read_records,
    within,
    write_whole,
)
from dopaminergic.lab.report_page import render
from dopaminergic.lab.report_words import of_paper
from dopaminergic.lab.results import (
    by_task,
    final_error,
    has_threshold,
    metric_name,
    solved_at,
    unique,
)
from dopaminergic.lab.standings import as_json, standings
from dopaminergic.lab.tables import solved_share


def write_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Judge, tabulate and draw the data of a folder.

    Writes `report.html`, `summary.json` and `figures/*`.

    Args:
        folder: with `records.jsonl` and, if they were made, `pictures.jsonl` and `costs.json`.
        out: folder of these files, created if missing; `folder` itself by default.
        commands: command lines that made the records, to be shown.

    Returns:
        The path of the page, which needs no other file and no network.

    Raises:
        ValueError: the folder has no records.
    """
    source = Path(folder)
    target = Path(folder if out is None else out)
    found = read_records(source / "records.jsonl", REQUIRED)
    if not found.records:
        raise ValueError(
            f"folder: no finished run in {source / 'records.jsonl'}; `dopaminergic reproduce` "
            "makes them "
            "(in a minute with --quick)"
        )
    target.mkdir(parents=True, exist_ok=True)
    records = unique(found.records)
    costs = read_costs(source / "costs.json")
    verdicts = judge(records, costs)
    drawings = draw_all(source, within(target, "figures"))
    write_whole(
        target / "summary.json",
        json.dumps(plain(summarise(records, verdicts)), indent=1, ensure_ascii=False),
    )
    page = render(records, costs, verdicts, drawings, found.damaged, commands)
    write_whole(target / "report.html", page)
    return target / "report.html"


def summarise(records: Iterable[Record], verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Medians, interquartile means, intervals and n of every task and method, and the verdicts.

    All are JSON types.

    Args:
        records: any; those of role "report" count.
        verdicts: from `judge`.
    """
    records = list(records)
    rows = []
    for title, cells in by_task(records).items():
        timed = has_threshold(run for runs in cells.values() for run in runs)
        for (optimizer, variant), runs in cells.items():
            row = {
                "task": runs[0]["task"],
                "title": title,
                "optimizer": optimizer,
                "variant": variant,
                "n": len(runs),
            }
            errors = [final_error(run) for run in runs]
            row |= {"metric": metric_name(runs), "error": statistics.estimate(errors)._asdict()}
            middle = statistics.estimate(errors, statistic=statistics.interquartile_mean)
            row |= {
                "interquartile_mean": middle._asdict(),
                "diverged": sum(map(math.isinf, errors)),
            }
            if timed:
                row["solved"] = solved_share(runs)._asdict()
                row["passes_to_threshold"] = statistics.estimate(
                    [solved_at(run) for run in runs]
                )._asdict()
            rows.append(row)
    claims = [
        {
            "claim": each.claim,
            "title": each.statement,
            "verdict": each.verdict,
            "n": each.n,
            "rule": each.rule,
            "provisional": each.provisional,
            "evidence": each.evidence[0],
            "details": each.evidence[1:],
        }
        for each in verdicts
    ]
    ranked = as_json(standings(records))
    # Claims of the paper are judged where tasks of its kinds have run.
    return {
        "schema": 1,
        "standings": ranked,
        "claims": claims if of_paper(records) else [],
        "results": rows,
    }
