"""Ask and tell is the optimizer itself: the same bits as with a closure, whatever the order of the
answers, and however often a run is interrupted.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dopaminergic import (
    SPSA,
    AskTell,
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    ForwardOptimizer,
    NodeDopamine,
    NodePerturbation,
    VectorDopamine,
    WeightPerturbation,
    squared_error,
)
from optimizers import through_a_file

SETTINGS: list[tuple[type[ForwardOptimizer], dict[str, Any]]] = [
    (Dopamine, {}),
    (Dopamine2, {"directions": 3, "weight_decay": 0.1}),
    (Dopamine2, {"two_sided": True, "noise": "gaussian"}),
    (SPSA, {}),
    (WeightPerturbation, {"directions": 2}),
    (EvolutionStrategy, {"directions": 3}),
    (VectorDopamine, {}),
    (VectorDopamine, {"directions": 3}),
]
NAMES = [f"{kind.__name__}-{'-'.join(given)}" for kind, given in SETTINGS]
GOAL = np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3)


def start() -> dict[str, np.ndarray]:
    """Weights of two dtypes."""
    return {"a": np.zeros((2, 3), np.float32), "b": np.ones(2)}


def losses(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The loss of each of four samples."""
    a, b = weights["a"], weights["b"]
    found = np.square(a - GOAL).sum(1)
    return np.concatenate([found, np.square(b)])


def answer(kind: type[ForwardOptimizer], weights: dict[str, np.ndarray]) -> Any:
    """A vector for the rule that learns from one, else a number."""
    found = losses(weights)
    return found if kind is VectorDopamine else float(found.mean())


def make_a_step(asker: AskTell, judge: Callable[[Any], Any]) -> list[int]:
    """Tell until a step is done, the last trial first; the numbers of its trials."""
    step = asker.optimizer.progress.step
    numbers = []
    while asker.optimizer.progress.step == step:
        for trial in reversed(asker.ask(1000)):
            numbers.append(trial.number)
            asker.tell(trial.number, judge(trial.weights))
    return sorted(numbers)


def same(first: Any, second: Any) -> bool:
    """Whether two dicts of arrays are the same bits."""
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("kind", "given"), SETTINGS, ids=NAMES)
def test_steps_are_those_of_a_closure_bit_for_bit(
    kind: type[ForwardOptimizer], given: dict[str, Any]
) -> None:
    asker = AskTell(start(), kind, seed=3, **given)
    params = {name: nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    batched: dict[str, Any] = {"batched": False} if kind is VectorDopamine else {}
    make: Any = kind
    optimizer = make(params.values(), seed=3, **given, **batched)

    def closure() -> Any:
        return answer(kind, {name: p.detach().numpy() for name, p in params.items()})

    for _ in range(8):
        make_a_step(asker, lambda weights: answer(kind, weights))
        optimizer.step(closure)
        assert same(asker.weights, {name: p.detach().numpy() for name, p in params.items()})
    assert asker.optimizer.forward_passes == optimizer.forward_passes
    assert str(asker.optimizer.state_dict()["forward"]) == str(optimizer.state_dict()["forward"])


@pytest.mark.parametrize(("kind", "given"), SETTINGS[2:], ids=NAMES[2:])
def test_a_run_resumes_bit_for_bit_in_the_middle_of_a_step(
    kind: type[ForwardOptimizer], given: dict[str, Any]
) -> None:
    asker = AskTell(start(), kind, seed=3, **given)
    make_a_step(asker, lambda weights: answer(kind, weights))
    trials: list[Any] = []
    while len(asker.missing) < 2:  # of VectorDopamine the first trial comes alone
        trials = asker.ask(3)
        if len(trials) == 1:
            asker.tell(trials[0].number, answer(kind, trials[0].weights))
    asker.tell(trials[1].number, answer(kind, trials[1].weights))
    saved = through_a_file(asker.state_dict())

    other = AskTell(start(), kind, seed=8, **given)
    other.load_state_dict(saved)
    pickled = pickle.loads(pickle.dumps(asker))
    again = other.ask()
    assert again.number == trials[0].number
    assert same(again.weights, trials[0].weights)
    for each in (asker, other, pickled):
        for trial in trials:  # told late, and once more
            each.tell(trial.number, answer(kind, trial.weights))
        for number in each.missing:
            each.forget(number)
        for _ in range(3):
            make_a_step(each, lambda weights: answer(kind, weights))
    assert same(asker.weights, other.weights)
    assert same(asker.weights, pickled.weights)
    assert str(asker.state_dict()) == str(other.state_dict())


def test_large_weights_displaced_in_place_are_those_of_a_closure() -> None:
    """Gaussian directions are taken back up to rounding there, and looking ahead must not show."""
    weights = np.linspace(0, 1, 300_000, dtype=np.float32)
    asker = AskTell(weights, SPSA, lr=1e-6, sigma=1e-3, noise="gaussian")
    parameter = nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = SPSA([parameter], lr=1e-6, sigma=1e-3, noise="gaussian")
    assert asker.optimizer.progress.step == 0
    for _ in range(2):
        make_a_step(asker, lambda w: float(np.square(w).sum()))
        optimizer.step(lambda: float(np.square(parameter.detach().numpy()).sum()))
        assert np.array_equal(asker.weights, parameter.detach().numpy())
    assert optimizer.weights.in_place


def test_predictions_may_be_told() -> None:
    inputs, target = torch.eye(3), torch.tensor([[1.0, 2.0, 3.0]])
    asker = AskTell(np.zeros((1, 3), np.float32), VectorDopamine)

    def judge(weights: np.ndarray) -> Any:
        return squared_error(torch.from_numpy(weights) @ inputs, target)

    for _ in range(20):
        make_a_step(asker, judge)
        trial = asker.ask()  # the first of a step: its predictions are in the state
        asker.tell(trial.number, judge(trial.weights))
        asker.load_state_dict(through_a_file(asker.state_dict()))
    assert np.allclose(asker.weights, target, atol=1e-3)


def test_weights_come_back_in_the_form_of_the_start() -> None:
    model = nn.Linear(2, 1)
    array = np.ones((2, 2), order="F")
    assert AskTell(array).ask().weights.tolist() == [[1, 1], [1, 1]]
    assert AskTell(torch.ones(2)).ask().weights.tolist() == [1, 1]
    assert [x.shape for x in AskTell([array, np.ones(3)]).ask().weights] == [(2, 2), (3,)]
    assert list(AskTell(model).ask().weights) == ["weight", "bias"]
    assert [x.shape for x in AskTell(model.parameters()).ask().weights] == [(1, 2), (1,)]
    groups = [{"params": array, "sigma": 0.5}, {"params": [np.ones(3)]}]
    asker = AskTell(groups, sigma=0.25)
    asker.ask()
    moved = asker.ask().weights
    assert [set(np.abs(x - 1).flatten()) for x in moved] == [{0.5}, {0.25}]
    moved[0][:] = 7.0
    assert array.tolist() == asker.weights[0].tolist() == [[1, 1], [1, 1]]


def test_a_model_is_trained_in_place_and_frozen_weights_stay() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    asker = AskTell(model, lambda params: Dopamine2(params, sigma=0.1))
    for _ in range(3):
        make_a_step(asker, lambda weights: np.square(weights["weight"]).sum())
    assert not np.array_equal(before["weight"], model.weight.detach().numpy())
    assert np.array_equal(before["bias"], model.bias.detach().numpy())
    assert same(asker.weights, {name: p.detach().numpy() for name, p in model.named_parameters()})


@pytest.mark.parametrize("kind", [Dopamine2, EvolutionStrategy, VectorDopamine])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:.*not finite")
def test_losses_that_are_not_finite_count_as_those_of_a_closure(kind: Any, bad: float) -> None:
    """At each place of a step in turn, for example at the weights, and where a step is checked."""
    given: dict[str, Any] = {"batched": False} if kind is VectorDopamine else {}
    asker = AskTell(np.zeros((2, 3), np.float32), kind, directions=2)
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = kind([parameter], directions=2, **given)
    for place in range(6):
        calls: dict[str, int] = {"told": 0, "closure": 0}

        def judge(weights: np.ndarray, who: str, calls: Any = calls, place: int = place) -> Any:
            calls[who] += 1
            found = np.square(weights - GOAL).sum(1)
            return found + bad if calls[who] == place + 1 else found

        while asker.optimizer.progress.step == place:
            for trial in asker.ask(9):
                asker.tell(trial.number, judge(trial.weights, "told"))
        optimizer.step(lambda: judge(parameter.detach().numpy(), "closure"))
        assert calls["told"] == calls["closure"]
        assert np.array_equal(asker.weights, parameter.detach().numpy())
    assert 0 < asker.optimizer.skipped_steps == optimizer.skipped_steps or kind != Dopamine2
    assert str(asker.optimizer.state_dict()) == str(optimizer.state_dict())


# ---- answers that are late, missing, repeated or wrong -------------------------------------------


def test_repeated_answers_are_ignored_and_contradicting_ones_refused() -> None:
    asker = AskTell(np.ones(3), directions=2)
    trials = asker.ask(3)
    assert asker.tell(trials[1].number, 2.0)
    assert not asker.tell(trials[1].number, np.float32(2.0))
    with pytest.raises(ValueError, match="trial 1 was answered otherwise before, now by 3"):
        asker.tell(1, 3.0)
    assert asker.missing == [0, 2]
    asker.tell(0, math.nan)
    assert not asker.tell(0, math.nan)
    with pytest.warns(RuntimeWarning, match="not finite"):
        asker.tell(2, 1.0)
    assert not asker.tell(1, 2.0)  # of a step that is over
    with pytest.raises(ValueError, match="trial 1 was answered otherwise"):
        asker.tell(1, 4.0)
    assert asker.optimizer.skipped_steps == 1


def test_old_answers_are_forgotten_and_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopaminergic.ask_tell.REMEMBERED", 4)
    asker = AskTell(np.ones(3))
    for _ in range(4):
        make_a_step(asker, lambda weights: weights.sum())
    assert not asker.tell(3, 7.0)
    with pytest.raises(ValueError, match="trial 4 was answered otherwise"):
        asker.tell(4, 7.0)
    assert len(asker.state_dict()["remembered"]) == 4


def test_missing_trials_are_asked_again_when_they_are_forgotten() -> None:
    asker = AskTell(np.ones(3))
    first, second = asker.ask(5)
    assert asker.ask(5) == []
    with pytest.raises(RuntimeError, match=r"all trials of this step are out \(\[0, 1\]\)"):
        asker.ask()
    asker.forget(1)
    again = asker.ask()
    assert again.number == second.number
    assert np.array_equal(again.weights, second.weights)
    assert asker.tell(1, 0.5)  # by either of both
    asker.forget(1)  # it came late
    assert asker.missing == [0]
    assert asker.tell(first.number, 0.5)
    assert asker.missing == []
    assert asker.ask().number == 2


def test_missing_trials_are_asked_again_after_a_time_out() -> None:
    asker = AskTell(np.ones(3), timeout=1e-9)
    assert [asker.ask().number, asker.ask().number] == [0, 0]
    patient = AskTell(np.ones(3), timeout=1e9)
    assert [patient.ask().number, patient.ask().number] == [0, 1]


def test_answers_may_come_from_many_threads() -> None:
    asker = AskTell(start(), EvolutionStrategy, directions=4)
    alone = AskTell(start(), EvolutionStrategy, directions=4)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            trials = asker.ask(8)
            told = pool.map(lambda t: asker.tell(t.number, losses(t.weights)), trials)
            assert all(told)
            make_a_step(alone, losses)
    assert same(asker.weights, alone.weights)


def test_answers_may_be_numbers_of_any_kind() -> None:
    for given in (1, np.float32(1), np.array(1.0), torch.tensor(1.0, requires_grad=True), True):
        asker = AskTell(np.ones(3))
        asker.tell(asker.ask().number, given)
        assert asker.best.loss == 1.0
        assert not asker.tell(0, 1.0)


def test_the_best_trial_is_kept() -> None:
    asker = AskTell(np.ones(3), sigma=0.1)
    with pytest.raises(RuntimeError, match="no finite loss was told yet"):
        _ = asker.best
    told = {}
    for value in (3.0, 1.0, 2.0, -math.inf):
        trial = asker.ask()
        told[trial.number] = trial.weights
        if math.isinf(value):
            with pytest.warns(RuntimeWarning, match="not finite"):
                asker.tell(trial.number, value)
        else:
            asker.tell(trial.number, [value, value])
    best = asker.best
    assert (best.number, best.loss) == (1, 1.0)
    assert np.array_equal(best.weights, told[1])


def test_changes_within_a_step_are_refused_until_a_restart() -> None:
    asker = AskTell(np.ones(3), sigma=0.1)
    asker.tell(asker.ask().number, 1.0)
    asker.ask()
    asker.optimizer.param_groups[0]["sigma"] = 0.2
    for _ in range(2):
        with pytest.raises(RuntimeError, match="changed within a step"):
            asker.ask() if asker.missing == [] else asker.tell(1, 2.0)
    assert asker.weights.tolist() == [1, 1, 1]
    asker.restart()
    assert [trial.number for trial in asker.ask(5)] == [2, 3]
    assert not asker.tell(1, 2.0)
    asker.tell(2, 1.0)
    asker.tell(3, 2.0)
    assert asker.optimizer.progress.step == 1


def test_an_interruption_loses_no_answer_and_makes_no_step_twice() -> None:
    asker = AskTell(np.ones(3), sigma=0.1)
    end = []

    def interrupt(_: Any) -> None:
        end.append(1)
        raise KeyboardInterrupt

    stop = asker.optimizer.listen(interrupt)
    first, second = asker.ask(2)
    asker.tell(first.number, 1.0)
    with pytest.raises(KeyboardInterrupt):  # after the step was written
        asker.tell(second.number, 2.0)
    stop()
    weights = asker.weights
    assert asker.ask().number == 2
    assert np.array_equal(asker.weights, weights)
    assert asker.optimizer.progress.step == 1
    assert not asker.tell(0, 1.0)


# ---- bad input -----------------------------------------------------------------------------------

BAD_STARTS: list[tuple[Any, type[Exception], str]] = [
    (3.0, TypeError, "start must be an array"),
    ("weights", TypeError, "start must be an array"),
    (np.ones(3, int), TypeError, "start is no array of floats but int64"),
    (np.ones(3, np.float16), TypeError, "float16"),
    (np.ones(3, complex), TypeError, "complex128"),
    (torch.ones(3, dtype=torch.bfloat16), TypeError, "bfloat16"),
    ([1.0, 2.0], TypeError, r"start\[0\] is no array of floats but float"),
    ({"a": None}, TypeError, r"start\['a'\] is no array"),
    ([{"sigma": 1.0}], TypeError, "group 0 of start has no 'params'"),
    ([], ValueError, "start has no weights"),
    ({}, ValueError, "start has no weights"),
    (np.ones((0, 3)), ValueError, "start has no weights"),
]


@pytest.mark.parametrize(("given", "error", "words"), BAD_STARTS, ids=str)
def test_bad_starts_are_refused(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as found:
        AskTell(given)
    assert len(str(found.value)) <= 300


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (NodeDopamine, "NodeDopamine cannot be asked"),
        (NodePerturbation, "NodePerturbation cannot be asked"),
        (torch.optim.SGD, "SGD cannot be asked .* no optimizer of this library"),
        (lambda params: torch.optim.SGD(params, lr=1.0), "SGD cannot be asked"),
        ("Dopamine2", "optimizer must be a class"),
        (lambda params: None, "NoneType cannot be asked"),
    ],
)
def test_optimizers_that_cannot_be_asked_are_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as found:
        AskTell(np.ones(3), given)
    assert len(str(found.value)) <= 300


def test_settings_that_cannot_be_asked_are_refused() -> None:
    for given, words in [
        ({"batched": True}, "Dopamine2 was given batched=True"),
        ({"seed": [1, 2, 3]}, "a fleet"),
        ({"timeout": 0}, "timeout must be finite and > 0, got 0"),
        ({"timeout": math.inf}, "timeout must be finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            AskTell(np.ones((3, 1)), **given)
    with pytest.raises(ValueError, match="made Dopamine2 of other parameters"):
        AskTell(np.ones(3), lambda params: Dopamine2([nn.Parameter(torch.ones(2))]))
    with pytest.raises(TypeError, match="timeout must be a number"):
        AskTell(np.ones(3), timeout="1 s")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("number", "outcome", "error", "words"),
    [
        (0, None, TypeError, "the outcome of trial 0 must be a number"),
        (0, "1.0", TypeError, "got '1.0'"),
        (0, (1.0, 2.0), TypeError, "must be a number"),
        (0, [], ValueError, "shape"),
        (0, np.ones((2, 2)), ValueError, r"has shape \(2, 2\)"),
        (0, 1j, TypeError, "must be a number"),
        (1, 1.0, ValueError, r"trial 1 was never asked; .* open ones are \[0\]"),
        (7, 1.0, ValueError, "trial 7 was never asked"),
        (-1, 1.0, ValueError, "number must be >= 0, got -1"),
        (0.0, 1.0, TypeError, "number must be the int"),
        ("0", 1.0, TypeError, "number must be the int"),
        (True, 1.0, TypeError, "number must be the int"),
    ],
)
def test_bad_answers_are_refused_and_change_nothing(
    number: Any, outcome: Any, error: type[Exception], words: str
) -> None:
    asker = AskTell(np.ones(3))
    asker.ask()
    before = str(asker.state_dict())
    with pytest.raises(error, match=re.compile(words)) as found:
        asker.tell(number, outcome)
    assert len(str(found.value)) <= 300
    assert str(asker.state_dict()) == before
    assert asker.missing == [0]


def test_bad_questions_are_refused() -> None:
    asker = AskTell(np.ones(3))
    for count, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="count must be"):
            asker.ask(count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="forget: trial 0 was never asked"):
        asker.forget(0)
    with pytest.raises(TypeError, match="forget: number must be the int"):
        asker.forget(None)  # pyright: ignore[reportArgumentType]


def test_vector_dopamine_refuses_other_samples_within_a_step() -> None:
    asker = AskTell(np.ones(3), VectorDopamine)
    asker.tell(asker.ask().number, [1.0, 2.0])
    asker.ask()
    with pytest.raises(ValueError, match=r"answered by 3 losses, and the first .* by 2 losses"):
        asker.tell(1, [1.0, 2.0, 3.0])
    assert asker.tell(1, [1.0, 2.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"weights": []}, "no list of 1 tensors"),
        ({"weights": [torch.ones(4, dtype=torch.float64)]}, "other shapes"),
        ({"weights": [torch.ones(3)]}, "float32"),
        ({"first": -1}, "first is -1"),
        ({"answers": {0: {"kind": "losses", "values": "high"}}}, "damaged"),
        ({"answers": {0: {}}}, "damaged"),
        ({"answers": {99: {"kind": "losses", "values": 1.0}}}, "answers trials"),
        ({"answers": 3}, "damaged"),
        ({"remembered": {0: -1}}, "a digest is -1"),
        ({"best": {"number": 0, "loss": math.nan, "weights": []}}, "best loss is nan"),
        ({"optimizer": {}}, "does not come from a forward-only optimizer"),
    ],
    ids=str,
)
def test_damaged_states_are_refused_and_change_nothing(change: dict[str, Any], words: str) -> None:
    asker = AskTell(np.ones(3))
    saved = asker.state_dict()
    asker.tell(asker.ask().number, 1.0)
    before = str(asker.state_dict())
    with pytest.raises(ValueError, match=words) as found:
        asker.load_state_dict({**saved, **change})
    assert len(str(found.value)) <= 300
    assert str(asker.state_dict()) == before
    assert asker.ask().number == 1


def test_states_of_other_things_are_refused() -> None:
    asker = AskTell(np.ones(3))
    others: tuple[Any, ...] = ({}, None, asker.optimizer.state_dict())
    for given in others:
        with pytest.raises(ValueError, match="no state of an AskTell"):
            asker.load_state_dict(given)
    with pytest.raises(ValueError, match="Dopamine2"):
        asker.load_state_dict(AskTell(np.ones(3), SPSA).state_dict())
