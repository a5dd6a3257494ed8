"""Numbers of NodeDopamine in README and its page are those of `benchmarks/results/nodes.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS: dict[str, Any] = json.loads((ROOT / "benchmarks/results/nodes.json").read_text())[
    "results"
]
TITLES = {
    "XOR 2-8-1": "xor-2-8-1",
    "continuous XOR": "continuous-xor",
    "Lorenz": "lorenz",
    "Rössler": "rossler",
    "Mackey-Glass": "mackey-glass",
    "sunspots": "sunspots",
    "digits": "digits",
    "convolutional digits": "digits-conv",
}


def agrees(told: str, task: str, passes: str) -> bool:
    """Whether a number is the median, rounded to its own last digit."""
    found = RESULTS[task]["node"]["quartiles"][passes.replace(",", "")][1]
    return abs(float(told) - found) <= 0.5001 * 10.0 ** -len(told.split(".")[1])


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with a cell."""
    table = text[text.index(f"| {head} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_page_tells_what_was_measured() -> None:
    told = rows((ROOT / "docs/nodes.md").read_text(), "test error | seeds")[2:]
    assert len(told) == len(TITLES)
    for label, seeds, *cells, _ in told:
        task = TITLES[label.split(",")[0]]
        assert int(seeds) == RESULTS[task]["node"]["runs"]
        for cell in cells:
            number, passes = cell.split(" at ")
            assert agrees(number, task, passes), (label, cell)


NETWORKS = {
    "digits by 64 hard thresholds": "threshold-digits",
    "MNIST-1D, perceptron": "mnist1d",
    "MNIST-1D, three convolutions": "mnist1d network=cnn",
}


def test_the_page_tells_the_accuracies_that_were_measured() -> None:
    told = rows((ROOT / "docs/nodes.md").read_text(), "accuracy at 6,000 passes | seeds")[2:]
    assert [label for label, *_ in told] == list(NETWORKS)
    for label, seeds, *cells in told:
        found = RESULTS[NETWORKS[label]]
        assert int(seeds) == found["node"]["runs"]
        for method, cell in zip(("node", "adam"), cells, strict=True):
            if cell:
                assert float(cell) == round(found[method]["accuracy"]["6000"][1], 3)


def test_the_readme_tells_what_was_measured() -> None:
    head, _, node, _ = rows((ROOT / "README.md").read_text(), "test error | Lorenz")
    for label, cell in zip(head[1:], node[1:], strict=True):
        number, passes = cell.split(", ")
        assert agrees(number, TITLES[label], passes), (label, cell)


@pytest.mark.parametrize("text", ["README.md", "docs/nodes.md"])
def test_passes_of_a_table_are_some_that_were_run(text: str) -> None:
    known = {int(p) for found in RESULTS.values() for p in found["node"]["quartiles"]}
    told = re.findall(r"\.\d+(?: at|,) ([\d,]+) ", (ROOT / text).read_text().split("tuned Adam")[0])
    assert {int(p.replace(",", "")) for p in told} <= known


@pytest.mark.parametrize("page", ["choosing.md", "index.md"])
def test_numbers_on_other_pages_are_those_that_were_measured(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text().replace("`", "").split())
    lines = re.findall(
        r"(Lorenz|digits)[^.]{0,20} (\.\d+) after ([\d,]+)(?: passes)?[,;]? (?:tuned )?Adam", text
    )
    lines += re.findall(
        r"\[test error on (Lorenz)\]\S+ \| NodeDopamine (\.\d+) after ([\d,]+)", text
    )
    lines += [
        ("Lorenz", *each)
        for each in re.findall(
            r"On the Lorenz system NodeDopamine is at (\.\d+) after ([\d,]+)", text
        )
    ]
    assert len(lines) >= 2
    for label, number, passes in lines:
        assert agrees(number, TITLES[label], passes), (label, number)
