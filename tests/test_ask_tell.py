"""Ask and tell is the optimizer itself: the same bits as with a closure, whatever the order of the
answers, and however often a run is interrupted.
"""

from __future__ import annotations

import math
import pickle
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


@pytest.mark.parametrize("kind", [Dopamine2, VectorDopamine])
@pytest.mark.parametrize("seed", range(3))
def test_no_disorder_changes_a_bit(kind: Any, seed: int) -> None:
    """Answers late, lost, repeated and contradicting, and a trainer that is lost and resumed."""
    asker = AskTell(start(), kind, directions=4)
    calm = AskTell(start(), kind, directions=4)
    for _ in range(6):
        make_a_step(calm, lambda weights: answer(kind, weights))
    chance = np.random.default_rng(seed)
    told: dict[int, Any] = {}
    mail: list[Any] = []  # answers on their way
    while asker.optimizer.progress.step < 6:
        event = chance.integers(7)
        if event < 2:
            mail += asker.ask(int(chance.integers(1, 4)))
        elif event < 4 and mail:
            trial = mail.pop(int(chance.integers(len(mail))))
            told[trial.number] = answer(kind, trial.weights)
            asker.tell(trial.number, told[trial.number])
        elif event == 4 and told:
            number = int(chance.choice(list(told)))
            assert not asker.tell(number, told[number])
            with pytest.raises(ValueError, match="was answered otherwise"):
                asker.tell(number, told[number] + 1.0)
        elif event == 5 and asker.missing:
            asker.forget(int(chance.choice(asker.missing)))
        elif event == 6:
            state = through_a_file(asker.state_dict())
            asker = AskTell(start(), kind, directions=4)
            asker.load_state_dict(state)
    assert same(asker.weights, calm.weights)
    assert asker.best.loss == calm.best.loss


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
