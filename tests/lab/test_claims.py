from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dopaminergic.lab.claims import CLAIMS, Verdict, judge

Record = dict[str, Any]


def runs(
    optimizer: str,
    task: str,
    errors: Sequence[float | None],
    solved: Sequence[int | None] | None = None,
) -> list[Record]:
    """Runs with the given final errors, each halving its error from four times the last on its
    way.
    """
    variant = "default" if optimizer in ("dopamine", "dopamine2", "vector", "node") else "tuned"
    return [
        {"task": task, "task_settings": {}, "optimizer": optimizer, "variant": variant,
         "role": "report", "seed": seed,
         "settings": {}, "budget": 300, "metrics": {},
         "solved_at": solved[seed] if solved else None,
         "curve": {"passes": [100, 200, 300],
                   "error": [4 * error, 2 * error, error] if error else [1.0, None, None]}}
        for seed, error in enumerate(errors)
    ]  # fmt: skip


def near(error: float, n: int = 20) -> list[float | None]:
    """Errors within 5 % about a median of exactly `error`."""
    return [error * (1 + 0.1 * (seed - (n - 1) / 2) / n) for seed in range(n)]


def verdict(claim: str, records: list[Record], costs: dict[str, Any] | None = None) -> Verdict:
    return next(each for each in judge(records, costs or {}) if each.claim == claim)


def word(claim: str, records: list[Record], costs: dict[str, Any] | None = None) -> str:
    return verdict(claim, records, costs).verdict


def test_nothing_measured_is_said_of_every_claim() -> None:
    verdicts = judge([], {})
    assert [each.claim for each in verdicts] == ["C1", "C2", "C3", "C4", "C5", "C6", "V1"]
    for each in verdicts:
        assert (each.verdict, each.n, each.provisional) == ("not measured", 0, False)
        assert each.evidence[0].startswith("Not measured: ")


def test_tuning_runs_judge_nothing() -> None:
    records = [
        record | {"role": "tuning"}
        for record in runs("dopamine", "lorenz", near(0.1)) + runs("wp", "lorenz", near(0.2))
    ]
    assert {each.verdict for each in judge(records, {})} == {"not measured"}


def test_every_verdict_states_its_rule() -> None:
    for each in judge([], {}):
        assert CLAIMS[each.claim][0] == each.statement
        assert "Holds: " in each.rule
        assert "Holds partly: " in each.rule


def test_c1_counts_wins_over_weight_perturbation() -> None:
    win = runs("dopamine", "lorenz", near(0.1)) + runs("wp", "lorenz", near(0.25))
    tie = runs("dopamine", "rossler", near(0.1)) + runs("wp", "rossler", near(0.1))
    loss = runs("dopamine", "henon", near(0.2)) + runs("wp", "henon", near(0.1))
    assert word("C1", win) == "holds"
    assert word("C1", win + tie) == "holds partly"
    assert word("C1", win + loss) == "not seen"
    assert word("C1", tie) == "not seen"
    found = verdict("C1", win + tie + loss)
    assert found.evidence[0] == "Against tuned WP, won on 1, level on 1, lost on 1 of 3 tasks."
    assert found.evidence[1] == (
        "Lorenz: median error 0.100 against 0.250, beats WP with probability 1.00 (1.00 to 1.00); "
        "reaches WP's final error after 200 of 300 passes."
    )
    assert (found.n, found.provisional) == (20, False)


def test_c1_compares_passes_where_there_is_a_threshold() -> None:
    # Dopamine ends with the larger error, yet is there sooner.
    fast = runs("dopamine", "xor-2-8-1", near(0.009), [100] * 20) + runs(
        "wp", "xor-2-8-1", near(0.001), [200] * 20
    )
    assert word("C1", fast) == "holds"
    never = runs("dopamine", "xor-2-8-1", near(0.001), [None] * 20) + runs(
        "wp", "xor-2-8-1", near(0.1), [200] * 20
    )
    assert word("C1", never) == "not seen"
    assert "median passes to the threshold ∞ against 200" in verdict("C1", never).evidence[1]


def test_a_diverged_run_loses() -> None:
    records = runs("dopamine", "lorenz", [None] * 15 + near(0.01, 5)) + runs(
        "wp", "lorenz", near(0.2)
    )
    assert word("C1", records) == "not seen"


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.5, "holds"), (1.24, "holds"), (1.26, "not seen"), (7.0, "not seen")]
)
def test_c2_is_a_ratio_of_medians(ratio: float, expected: str) -> None:
    records = runs("dopamine", "lorenz", near(0.1 * ratio)) + runs("adam", "lorenz", near(0.1))
    found = verdict("C2", records + runs("dopamine2", "lorenz", near(0.9)))
    assert found.verdict == expected
    assert (
        f"median error of Dopamine 0.{round(1000 * ratio * 0.1):03d}, Adam 0.100"
        in found.evidence[1].replace("0.0500", "0.050")
    )


def test_c2_holds_partly_for_some_tasks_and_takes_the_better_rule() -> None:
    lorenz = (
        runs("dopamine", "lorenz", near(0.5))
        + runs("dopamine2", "lorenz", near(0.1))
        + runs("adam", "lorenz", near(0.1))
    )
    rossler = runs("dopamine", "rossler", near(0.5)) + runs("adam", "rossler", near(0.1))
    assert word("C2", lorenz) == "holds"
    assert word("C2", lorenz + rossler) == "holds partly"
    solved = runs("dopamine", "xor-2-2-1", near(0.5), [10] * 10 + [None] * 10)
    solved += runs("adam", "xor-2-2-1", near(0.1), [10] * 11 + [None] * 9)
    assert word("C2", rossler + solved) == "holds partly"
    assert word("C2", solved) == "not measured"
    fewer = runs("adam", "xor-2-2-1", near(0.1), [10] * 12 + [None] * 8)
    assert word("C2", rossler + solved[:20] + fewer) == "not seen"


def test_c2_takes_the_best_of_the_rules_that_were_run() -> None:
    behind = runs("dopamine", "lorenz", near(0.3)) + runs("adam", "lorenz", near(0.1))
    assert word("C2", behind) == "not seen"
    found = verdict("C2", behind + runs("node", "lorenz", near(0.1)))
    assert found.verdict == "holds"
    assert "Lorenz: median error of NodeDopamine 0.1" in found.evidence[1]
    other = runs("dopamine", "rossler", near(0.1)) + runs("adam", "rossler", near(0.1))
    both = verdict("C2", behind + runs("node", "lorenz", near(0.1)) + other)
    assert (both.verdict, len(both.evidence)) == ("holds", 3)  # not run is not lost


def costs(time: float = 1.05, memory: float = 1.0) -> dict[str, Any]:
    rows = [
        ("dopamine", "m", 2, time, memory),
        ("adam", "m", 3, 3.5, 4.5),
        ("adam", "other", 3, 0.1, 0.1),
    ]
    keys = (
        "optimizer",
        "task",
        "passes_per_step",
        "time_over_two_forwards",
        "peak_memory_over_inference",
    )
    return {"rows": [dict(zip(keys, row, strict=True)) for row in rows]}


def test_c3_needs_cheaper_steps_and_less_work() -> None:
    behind = runs("dopamine", "lorenz", near(0.1)) + runs("adam", "lorenz", near(0.04))
    ahead = runs("dopamine", "lorenz", near(0.1)) + runs("adam", "lorenz", near(0.2))
    assert word("C3", ahead, costs()) == "holds"
    assert word("C3", behind, costs()) == "holds partly"
    assert word("C3", ahead, costs(time=4.0)) == "holds partly"
    assert word("C3", ahead, costs(time=4.0, memory=5.0)) == "not seen"
    assert word("C3", ahead) == "not measured"
    assert word("C3", ahead, {"rows": costs()["rows"][:1]}) == "not measured"
    found = verdict("C3", behind, costs())
    assert "Adam is at the same error sooner on 1 of 1 forecasting tasks" in found.evidence[0]
    assert (
        found.evidence[2]
        == "Time of a step, in units of two forward passes: 1.05 against Adam's 3.50."
    )
    assert (
        found.evidence[-1] == "Lorenz: Dopamine's error after 300 passes; Adam is there after 200."
    )


def test_c3_without_runs_holds_partly_at_most() -> None:
    found = verdict("C3", [], costs())
    assert (found.verdict, found.n, found.provisional) == ("holds partly", 0, True)


def test_c4_compares_unseen_points_with_all_three() -> None:
    def task(name: str, *, sgd: float, adam: float, wp: float) -> list[Record]:
        others = (
            runs("sgd", name, near(sgd))
            + runs("adam", name, near(adam))
            + runs("wp", name, near(wp))
        )
        return runs("dopamine", name, near(0.1)) + others

    best = task("cluster-xor", sgd=0.2, adam=0.2, wp=0.2)
    assert word("C4", best) == "holds"
    assert word("C4", best + task("continuous-xor", sgd=0.2, adam=0.05, wp=0.2)) == "holds partly"
    assert word("C4", task("cluster-xor", sgd=0.2, adam=0.2, wp=0.1)) == "holds partly"
    assert word("C4", task("cluster-xor", sgd=0.2, adam=0.1, wp=0.2)) == "not seen"
    assert (
        word(
            "C4",
            runs("dopamine", "cluster-xor", near(0.1)) + runs("adam", "cluster-xor", near(0.2)),
        )
        == "not seen"
    )
    assert word("C4", [record | {"task": "xor-2-2-1"} for record in best]) == "not measured"


def test_c5_finds_the_lowest_median_of_each_task() -> None:
    def task(name: str, **medians: float) -> list[Record]:
        return [
            record
            for optimizer, error in medians.items()
            for record in runs(optimizer, name, near(error))
        ]

    lowest = task("lorenz", dopamine2=0.1, dopamine=0.2, adam=0.3)
    behind_adam = task("rossler", dopamine2=0.1, dopamine=0.2, adam=0.05)
    behind_dopamine = task("henon", dopamine2=0.3, dopamine=0.2, adam=0.05)
    assert word("C5", lowest) == "holds"
    for later in ("vector", "node"):
        rivals = task("rossler", dopamine2=0.1, adam=0.3) + runs(later, "rossler", near(0.01))
        assert word("C5", lowest + rivals) == "holds"
    assert word("C5", behind_adam) == "holds partly"
    assert word("C5", lowest + behind_dopamine) == "holds partly"
    assert word("C5", behind_adam + behind_dopamine) == "not seen"
    assert verdict("C5", behind_dopamine).evidence[1] == (
        "Hénon: lowest is Adam with 0.0500; Dopamine2 has 0.300; lowest without gradients is "
        "Dopamine with 0.200."
    )
    assert word("C5", task("lorenz", dopamine2=0.1)) == "not measured"


def test_c6_counts_runs_that_diverge_or_climb_again() -> None:
    calm = runs("dopamine", "lorenz", near(0.1)) + runs("wp", "lorenz", near(0.1))
    assert word("C6", calm) == "holds"
    wide = runs(
        "dopamine",
        "lorenz",
        [error * (1 + seed) for seed, error in enumerate(e for e in near(0.1) if e)],
    )
    assert word("C6", wide + runs("wp", "lorenz", near(0.1))) == "holds partly"
    climbed = [
        record | {"curve": {"passes": [100, 200, 300], "error": [1.0, 0.1, 0.21]}}
        for record in calm[:2]
    ]
    found = verdict("C6", climbed + calm[2:])
    assert found.verdict == "not seen"
    assert found.evidence[0].startswith("Unstable runs: Dopamine 2 of 20;")
    assert word("C6", runs("dopamine", "lorenz", [None, *near(0.1, 9)])) == "not seen"


def test_v1_pairs_vector_dopamine_with_adam_by_seed() -> None:
    def task(name: str, *, vector: float, adam: float) -> list[Record]:
        return runs("vector", name, near(vector)) + runs("adam", name, near(adam))

    # The ranges of the two overlap, yet on each seed one of them is lower by a little.
    win, loss = task("lorenz", vector=0.1, adam=0.101), task("digits", vector=0.101, adam=0.1)
    tie = task("rossler", vector=0.1, adam=0.1)
    assert word("V1", win) == "holds"
    assert word("V1", win + tie) == "holds partly"
    assert word("V1", win + loss) == "not seen"
    assert word("V1", tie) == "not seen"
    found = verdict("V1", win + loss + tie)
    assert found.evidence[0] == "Against tuned Adam, won on 1, level on 1, lost on 1 of 3 tasks."
    assert found.evidence[1].startswith(
        "Lorenz: median error 0.100 against 0.101, lower on 100% of 20 seeds, median"
    )
    assert found.evidence[1].endswith("difference −0.00102 to −9.80 × 10⁻⁴.")  # noqa: RUF001
    assert (found.n, found.provisional) == (20, False)
    assert (
        word("V1", runs("vector", "lorenz", near(0.1)) + runs("wp", "lorenz", near(0.2)))
        == "not measured"
    )
    assert "not a claim of the paper" in found.rule


def test_v1_compares_passes_where_there_is_a_threshold_and_a_run_that_never_meets_it_loses() -> (
    None
):
    late = runs("vector", "xor-2-8-1", near(0.001), [200] * 20) + runs(
        "adam", "xor-2-8-1", near(0.009), [100] * 20
    )
    assert word("V1", late) == "not seen"
    never = runs("vector", "xor-2-8-1", near(0.1), [200] * 20) + runs(
        "adam", "xor-2-8-1", near(0.01), [None] * 20
    )
    assert word("V1", never) == "holds"
    unpaired = runs("vector", "lorenz", [0.1]) + runs("adam", "lorenz", [0.2])
    assert word("V1", unpaired) == "not seen"


def test_a_verdict_is_provisional_where_small_groups_decide_it() -> None:
    large = runs("dopamine", "lorenz", near(0.1)) + runs("wp", "lorenz", near(0.2))
    agrees = runs("dopamine", "rossler", near(0.1, 3)) + runs("wp", "rossler", near(0.2, 3))
    differs = runs("dopamine", "rossler", near(0.2, 3)) + runs("wp", "rossler", near(0.1, 3))
    firm, shaky = verdict("C1", large + agrees), verdict("C1", large + differs)
    assert (firm.verdict, firm.n, firm.provisional) == ("holds", 3, False)
    assert (shaky.verdict, shaky.n, shaky.provisional) == ("not seen", 3, True)


def test_few_seeds_alone_make_a_verdict_provisional() -> None:
    records = runs("dopamine", "lorenz", near(0.1, 4)) + runs("wp", "lorenz", near(0.2, 30))
    found = verdict("C1", records)
    assert (found.verdict, found.n, found.provisional) == ("holds", 4, True)
    # One run each has no interval, so there is neither a win nor a loss.
    assert word("C1", runs("dopamine", "lorenz", [0.1]) + runs("wp", "lorenz", [0.2])) == "not seen"
