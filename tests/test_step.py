"""One step of every optimizer: what it perturbs, what it changes, what it counts, and what it
leaves alone.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dopaminergic import Dopamine, ForwardOptimizer, WeightPerturbation
from dopaminergic.shortcut import ShortSteps
from optimizers import LARGE, Bowl, Regression, Row, copies, drawn, randn, same

DOUBLE = torch.float64


def visited(optimizer: ForwardOptimizer, steps: int = 1) -> list[list[Tensor]]:
    """The trainable weights at every call of a closure that always returns 1, so that most rules
    leave them there.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seen: list[list[Tensor]] = []

    def closure() -> float:
        seen.append(copies(parameters))
        return 1.0

    for _ in range(steps):
        optimizer.step(closure)
    return seen


# ---- perturbations -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("directions", [1, 3])
def test_the_closure_sees_the_weights_of_the_definition(
    row: Row, noise: str, directions: int
) -> None:
    """Distinct noise for every layer (two of them of one shape), direction and step; signs for
    SPSA's pairs.
    """
    parameters = [
        nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate([(4, 3), (4, 3), (7,)])
    ]
    old, sigma = copies(parameters), 0.01
    optimizer = row.make(
        parameters, sigma=sigma, noise=noise, directions=directions, seed=5, lr=0.0
    )
    seen = visited(optimizer, steps=2)
    both = row.passes(1) == 2 and not row.returns_base
    expected = []
    for step in range(2):
        expected += [old] if row.returns_base else []
        for k in range(directions):
            zs = [drawn(optimizer, p, i, step=step, direction=k) for i, p in enumerate(parameters)]
            for sign in (1, -1) if both else (1,):
                expected.append([w + sign * sigma * z for w, z in zip(old, zs, strict=True)])
    assert len(seen) == len(expected)
    for got, want in zip(seen, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(
                a, b, rtol=0, atol=1e-15 if noise == "rademacher" else sigma * 2e-6
            )


def test_forward_passes_are_the_calls_of_the_closure(row: Row) -> None:
    for directions in (1, 4):
        problem, calls = Regression(), 0

        def closure(problem: Regression = problem) -> Tensor:
            nonlocal calls
            calls += 1
            return problem.loss()

        optimizer = row.make(problem.model.parameters(), directions=directions)
        before = calls
        for _ in range(3):
            optimizer.step(closure)
        assert calls - before == optimizer.forward_passes == 3 * row.passes(directions)


def test_the_loss_returned_is_that_of_the_weights_before(any_row: Row) -> None:
    problem, seen = Regression(), []

    def closure() -> Tensor:
        seen.append(float(problem.loss()))
        return problem.loss()

    returned = any_row.make(problem.model.parameters()).step(closure)
    assert isinstance(returned, float)
    assert returned == (
        seen[0] if any_row.returns_base else pytest.approx(sum(seen) / len(seen), rel=1e-15)
    )


def test_dtypes_mix_in_one_optimizer(row: Row) -> None:
    a, b = nn.Parameter(randn(40, dtype=torch.float32)), nn.Parameter(randn(40, seed=1))
    optimizer = row.make([a, b], directions=1, sigma=0.25)
    seen = visited(optimizer)[-1]
    sign = 1 if row.returns_base else -1
    for i, (p, got, old) in enumerate(
        ((a, seen[0], randn(40).float()), (b, seen[1], randn(40, seed=1)))
    ):
        want = (old.double() + sign * 0.25 * drawn(optimizer, p, i, step=0)).to(got.dtype)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        assert got.dtype == old.dtype


# ---- updates -------------------------------------------------------------------------------------


def test_no_learning_rate_no_change(any_row: Row) -> None:
    problem = Regression(dtype=torch.float32)
    old = problem.weights()
    optimizer = any_row.make(problem.model.parameters(), lr=0.0, weight_decay=0.3, directions=3)
    for _ in range(5):
        optimizer.step(problem.loss)
    assert same(problem.weights(), old)


@pytest.mark.parametrize("directions", [1, 4])
def test_no_learning_rate_moves_large_models_by_rounding_alone(directions: int) -> None:
    """They keep no copy: going along a direction and back are two roundings, half a unit in the
    last place each.
    """
    bowl = Bowl()
    old = bowl.w.detach().clone()
    WeightPerturbation([bowl.w], lr=0.0, directions=directions).step(bowl.loss)
    units = (bowl.w.detach() - old).abs() / ulp(old.abs() + 1e-3)
    assert float(units.max()) <= directions
    assert float((units <= 0.5).double().mean()) > 0.99


def ulp(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf)) - x


def test_a_step_without_decay_moves_along_the_directions_alone(row: Row) -> None:
    """The change lies in the span of the K directions: what is left after projecting onto them is
    rounding.
    """
    problem = Regression()
    optimizer = row.make(problem.model.parameters(), directions=3, seed=2)
    parameters, old = list(problem.model.parameters()), problem.weights()
    optimizer.step(problem.loss)
    change = torch.cat([(p.detach() - w).flatten() for p, w in zip(parameters, old, strict=True)])
    z = torch.stack(
        [
            torch.cat(
                [
                    drawn(optimizer, p, i, step=0, direction=k).flatten()
                    for i, p in enumerate(parameters)
                ]
            )
            for k in range(3)
        ]
    )
    left = change - z.T @ torch.linalg.lstsq(z.T, change).solution
    assert float(change.norm()) > 1e-6
    # Fast normals differ from the definition's by a few ulp of float32.
    assert float(left.norm() / change.norm()) < (
        1e-12 if optimizer.settings["noise"] == "rademacher" else 1e-5
    )


@pytest.mark.parametrize("large", [False, True])
def test_weight_decay_shrinks_by_the_learning_rate_it_amounts_to(row: Row, large: bool) -> None:
    """Decoupled: w <- (1 - rate * decay) w + update, with the update of the run without decay."""
    ends, rates, n = [], [], LARGE if large else 30
    for decay in (0.0, 0.7):
        bowl = Bowl(n, dtype=torch.float32 if large else DOUBLE)
        optimizer = row.make([bowl.w], weight_decay=decay, directions=2, noise="rademacher")
        old = bowl.w.detach().clone()
        optimizer.step(bowl.loss)
        ends.append(bowl.w.detach().double())
        rates.append(optimizer.last_learning_rate)
    assert rates[0] == rates[1] > 0
    shrunk = ends[0] - rates[1] * 0.7 * old.double()
    if rates[1] * 0.7 < 1:
        torch.testing.assert_close(ends[1], shrunk, rtol=0, atol=2e-6 if large else 1e-14)
    else:
        torch.testing.assert_close(
            ends[1], ends[0] - old.double(), rtol=0, atol=2e-6 if large else 1e-14
        )


def test_groups_have_their_own_learning_rate_sigma_and_decay() -> None:
    a, b = nn.Parameter(randn(6)), nn.Parameter(randn(4, seed=1))
    old_a, old_b = copies([a, b])
    optimizer = WeightPerturbation(
        [{"params": [a], "lr": 0.5}, {"params": [b], "sigma": 0.1, "weight_decay": 0.2}],
        lr=0.03,
        sigma=1e-3,
    )

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (a**2).sum() + (b**3).sum() + a[0] * b[0]

    optimizer.step(lambda: loss(a, b))
    za, zb = drawn(optimizer, a, 0, step=0), drawn(optimizer, b, 1, step=0)
    delta = loss(old_a + 1e-3 * za, old_b + 0.1 * zb) - loss(old_a, old_b)
    torch.testing.assert_close(a.detach(), old_a - 0.5 * delta / 1e-3 * za, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        b.detach(), (1 - 0.03 * 0.2) * old_b - 0.03 * delta / 0.1 * zb, rtol=1e-10, atol=1e-12
    )


def test_a_group_that_does_not_learn_stays(row: Row) -> None:
    problem = Regression()
    first, *rest = problem.model.parameters()
    optimizer = row.make([{"params": [first], "lr": 0.0}, {"params": rest}])
    old = problem.weights()
    optimizer.step(problem.loss)
    new = problem.weights()
    assert same(new[:1], old[:1])
    assert not any(torch.equal(a, b) for a, b in zip(new[1:], old[1:], strict=True))


# ---- which parameters ----------------------------------------------------------------------------


def test_frozen_parameters_are_not_touched_and_others_keep_their_noise(row: Row) -> None:
    parameters = [nn.Parameter(randn(5, seed=i)) for i in range(3)]
    optimizer = row.make(parameters, directions=1, lr=0.0)
    for frozen in (None, 1, 0, None):
        for i, p in enumerate(parameters):
            p.requires_grad_(i != frozen)
        step, old = optimizer.state_dict()["forward"]["progress"]["step"], copies(parameters)
        seen = visited(optimizer)[-1]
        sign = 1 if row.returns_base else -1
        for i, p in enumerate(parameters):
            sigma = 0.0 if i == frozen else optimizer.param_groups[0]["sigma"]
            torch.testing.assert_close(
                seen[i],
                old[i] + sign * sigma * drawn(optimizer, p, i, step=step),
                rtol=0,
                atol=sigma * 2e-6,
            )
            assert i != frozen or torch.equal(seen[i], old[i])


def test_tied_weights_are_perturbed_once(row: Row) -> None:
    tied = nn.Linear(4, 4, bias=False, dtype=DOUBLE)
    model = nn.Sequential(tied, nn.Tanh(), tied)
    old = copies(model.parameters())
    optimizer = row.make(model.parameters(), directions=1)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(tied.weight.detach().clone())
        return (model(randn(8, 4)) ** 2).mean()

    optimizer.step(closure)
    sigma = optimizer.param_groups[0]["sigma"]
    torch.testing.assert_close(
        (seen[-1] - old[0]).abs(),
        sigma * drawn(optimizer, tied.weight, 0, step=0).abs(),
        rtol=1e-6,
        atol=1e-9,
    )


def test_the_layout_in_memory_does_not_matter(any_row: Row) -> None:
    """A transposed parameter gets the noise of its own elements, in their logical order."""
    ends = []
    for transposed in (False, True):
        w = randn(6, 5)
        w = nn.Parameter(w.t().contiguous().t() if transposed else w)
        assert w.is_contiguous() is not transposed
        v, target = nn.Parameter(randn(3, seed=1)), randn(6, 5, seed=2)
        optimizer = any_row.make([w, v], noise="rademacher")
        for _ in range(3):
            optimizer.step(
                lambda w=w, v=v, target=target: float(
                    ((w - target) ** 2).contiguous().sum() + (v**2).sum()
                )
            )
        ends.append((w.detach().contiguous(), v.detach()))
    # The sum over a transposed tensor runs in another order, which the regret magnifies.
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("large", [False, True])
def test_a_slice_of_a_larger_tensor_leaves_the_rest_alone(row: Row, large: bool) -> None:
    whole = randn(10 * (40_000 if large else 1), 8)
    w = nn.Parameter(whole[:, 2:5])
    untouched, old = whole.clone(), whole[:, 2:5].clone()
    optimizer = row.make([w], directions=1)
    optimizer.step(lambda: (w**2).mean())
    assert torch.equal(whole[:, :2], untouched[:, :2])
    assert torch.equal(whole[:, 5:], untouched[:, 5:])
    assert not torch.equal(w.detach(), old)
    assert w.data_ptr() == whole[:, 2:5].data_ptr()


def test_empty_and_single_number_parameters(row: Row) -> None:
    empty, single, vector = (
        nn.Parameter(torch.empty(0, 3)),
        nn.Parameter(torch.tensor(2.0)),
        nn.Parameter(randn(3)),
    )
    optimizer = row.make([empty, single, vector], directions=1)
    seen = visited(optimizer)[-1]
    sigma, sign = optimizer.param_groups[0]["sigma"], 1 if row.returns_base else -1
    z = drawn(optimizer, single, 1, step=0)
    torch.testing.assert_close(seen[1].double(), 2.0 + sign * sigma * z, rtol=1e-6, atol=0)
    assert seen[0].shape == (0, 3)
    assert seen[1].shape == ()
    optimizer.step(lambda: float(single) ** 2 + float(vector.sum()))
    assert float(single.detach()) != 2.0


def test_replaced_and_cast_weights_are_found_again(any_row: Row) -> None:
    """Users move models between steps; the optimizer follows the parameter, not the memory it once
    had.
    """
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.step(problem.loss)
    abandoned = [p.data for p in problem.model.parameters()]
    for p in problem.model.parameters():
        p.data = p.data.float() if p.ndim == 1 else p.data.clone()
    kept, old = copies(abandoned), problem.weights()
    problem.model.double()
    optimizer.step(problem.loss)
    assert same(copies(abandoned), kept)
    assert not any(torch.equal(a, b.double()) for a, b in zip(problem.weights(), old, strict=True))


VIEWS: dict[str, Any] = {
    "transposed": lambda w: w.t(),
    "frozen": lambda w: w,
    "cut": lambda w: w[:3],
    "other numbers": lambda w: w.view(
        torch.float16 if w.dtype == torch.bfloat16 else torch.float32
    ),
}
MEMORIES = {
    "bfloat16": randn(6, 4).bfloat16(),
    "float32": randn(6, 4).float(),
    "float64": randn(6, 8).float().view(torch.float64),
}


@pytest.mark.parametrize("dtype", MEMORIES)
@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_of_the_same_memory_is_another_parameter(kind: str, dtype: str) -> None:
    """The address alone would not tell: it stays the same, and so does the number of weights of
    some.
    """
    memory = MEMORIES[dtype].clone()
    w, other = nn.Parameter(memory), nn.Parameter(randn(3).to(memory.dtype))
    optimizer = WeightPerturbation([w, other], sigma=0.25, lr=0.0)
    visited(optimizer)
    w.data = VIEWS[kind](w.data)
    w.requires_grad_(kind != "frozen")
    before, whole = w.detach().clone(), memory.clone()
    seen = visited(optimizer)[1][0]
    z = drawn(optimizer, w, 0, step=1) if kind != "frozen" else torch.zeros_like(w)
    # Two units in the last place of a 16-bit number below 4: one for the sum and one for the way it
    # is rounded.
    torch.testing.assert_close(seen.double(), before.double() + 0.25 * z, rtol=0, atol=2.0**-5)
    assert torch.equal(memory, whole)


def test_another_sigma_is_found() -> None:
    w = nn.Parameter(torch.zeros(6, 4))
    optimizer = WeightPerturbation([w], sigma=0.25)
    for sigma in (0.25, 0.5, 0.125):
        optimizer.param_groups[0]["sigma"] = sigma
        assert torch.equal(visited(optimizer)[1][0].abs(), torch.full_like(w, sigma))


def test_what_is_cut_off_a_parameter_is_left_alone() -> None:
    """Even while the closure runs."""
    memory, rests = randn(6, 4), []
    w = nn.Parameter(memory)
    optimizer = WeightPerturbation([w])
    visited(optimizer)
    w.data, rest = w.data[:2], memory[2:].clone()
    optimizer.step(lambda: rests.append(memory[2:].clone()) or 1.0)
    assert same(rests, [rest, rest])


# ---- two halves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
def test_probe_and_step_is_step_with_a_closure(any_row: Row, large: bool) -> None:
    ends = []
    for halves in (False, True):
        problem = Bowl() if large else Regression()
        parameters = [problem.w] if isinstance(problem, Bowl) else list(problem.model.parameters())
        optimizer = any_row.make(parameters, sigma=1e-3, weight_decay=0.1, directions=2)
        losses = []
        for _ in range(2 if large else 4):
            if halves:
                losses.append(optimizer.probe(problem.loss))
                assert optimizer.step() is None
            else:
                losses.append(optimizer.step(problem.loss))
        ends.append((copies(parameters), losses, optimizer.state_dict()["forward"]))
    if large:
        # Weights are restored between the halves, which rounds once more.
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-6, atol=1e-6)
    else:
        assert same(ends[0][0], ends[1][0])
        assert ends[0][1:] == ends[1][1:]


def test_probe_leaves_weights_and_counters(row: Row) -> None:
    problem = Regression()
    optimizer = row.make(problem.model.parameters())
    old, before = problem.weights(), optimizer.state_dict()
    optimizer.probe(problem.loss)
    assert same(problem.weights(), old)
    assert optimizer.state_dict() == before
    assert optimizer.forward_passes == 0


@pytest.mark.filterwarnings("ignore:.*a second probe:RuntimeWarning")
def test_the_last_probe_counts(row: Row) -> None:
    one, two = Regression(), Regression()
    a, b = row.make(one.model.parameters()), row.make(two.model.parameters())
    a.probe(lambda: 5 * one.loss() ** 2 + 1)
    a.probe(one.loss)
    a.step()
    b.step(two.loss)
    assert same(one.weights(), two.weights())
    assert a.forward_passes == b.forward_passes


def test_step_without_a_probe_says_so_and_does_nothing(row: Row) -> None:
    problem = Regression()
    optimizer = row.make(problem.model.parameters())
    old = problem.weights()
    with pytest.raises(RuntimeError, match=rf"{row.name}.*probe"):
        optimizer.step()
    optimizer.probe(problem.loss)
    optimizer.step()
    with pytest.raises(RuntimeError, match="probe"):
        optimizer.step()
    assert optimizer.forward_passes == row.passes(optimizer.settings["directions"])
    assert not same(problem.weights(), old)


def test_a_probe_is_forgotten_by_a_whole_step(any_row: Row) -> None:
    """What it found belongs to weights and directions that are past."""
    problem = Regression()
    optimizer = any_row.make(problem.model.parameters())
    optimizer.probe(problem.loss)
    optimizer.step(problem.loss)
    old = problem.weights()
    with pytest.raises(RuntimeError, match="probe"):
        optimizer.step()
    assert same(problem.weights(), old)


# ---- outcomes that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_step(row: Row, bad: float) -> None:
    """At every evaluation in turn: weights and rule as before, the step counted, its noise used up,
    one warning.
    """
    if row.name == "EvolutionStrategy" and bad == math.inf:
        pytest.skip("a loss of inf ranks last there")
    passes = row.passes(2)
    problem = Regression(dtype=torch.float32)
    optimizer = row.make(problem.model.parameters(), directions=2)
    optimizer.step(problem.loss)
    old, rule, calls = problem.weights(), optimizer.state_dict()["forward"]["rule"], 0

    def closure(at: int) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.loss() if calls % passes != at else torch.tensor(bad)

    for at in range(passes):
        if at == 0:
            with pytest.warns(RuntimeWarning, match=rf"{row.name}.*not finite") as caught:
                optimizer.step(lambda at=at: closure(at))
            assert len(caught) == 1
        else:
            optimizer.step(lambda at=at: closure(at))
        assert same(problem.weights(), old)
    forward = optimizer.state_dict()["forward"]
    assert forward["rule"] == rule
    assert optimizer.skipped_steps == passes
    assert forward["progress"]["step"] == 1 + passes
    assert optimizer.forward_passes == passes * (1 + passes)
    optimizer.step(problem.loss)
    assert not same(problem.weights(), old)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_one_direction_of_one_group_takes_a_shorter_way_to_the_same_bits(
    row: Row, noise: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, state and counters, also with decay, dropout and a loss that is not finite now and
    then.
    """
    ends: list[Any] = []
    for short in (True, False):
        if not short:
            monkeypatch.setattr(ShortSteps, "_short_plan", lambda *_: None)
        torch.manual_seed(1)
        parameters = [nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate([(4, 3), (3,)])]
        parameters += [nn.Parameter(randn(1 << 18, seed=3))] * large
        optimizer, losses = (
            row.make(parameters, noise=noise, directions=1, seed=5, weight_decay=0.1),
            [],
        )
        for step in range(12):
            scale = math.nan if step == 5 else 1.0

            def closure(
                scale: float = scale, parameters: list[nn.Parameter] = parameters
            ) -> Tensor:
                kept = nn.functional.dropout(torch.cat([p.flatten()[:10] for p in parameters]))
                return scale * kept.square().mean()

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                losses.append(optimizer.step(closure))
            optimizer.param_groups[0]["lr"] *= 1.1
        ends.append(
            [
                str(losses),
                copies(parameters),
                optimizer.state_dict()["forward"]["progress"],
                torch.rand(3),
            ]
        )
        ends[-1] += [optimizer.state_dict()["forward"]["rule"]]
        assert optimizer.skipped_steps == 1
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert torch.equal(ends[0][3], ends[1][3])
    assert ends[0][4] == ends[1][4]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("hooked", [False, True])
def test_the_warning_of_a_skipped_step_names_the_line_of_the_user(
    directions: int, hooked: bool
) -> None:
    optimizer = Dopamine([nn.Parameter(randn(4))], directions=directions)
    if hooked:
        optimizer.register_step_post_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match="not finite") as caught:
        optimizer.step(lambda: math.nan)
    assert caught[0].filename == __file__


def test_a_loss_too_large_to_be_differenced_skips_the_step() -> None:
    w = nn.Parameter(randn(4))
    optimizer = WeightPerturbation([w], lr=1e10)
    old = w.detach().clone()
    with pytest.warns(RuntimeWarning):
        optimizer.step(lambda: 1e300 * float(w[0]))
    assert torch.equal(w.detach(), old)
    assert optimizer.skipped_steps == 1


def test_a_constant_loss_moves_nothing_and_breaks_nothing(any_row: Row) -> None:
    problem = Regression()
    optimizer, old = any_row.make(problem.model.parameters()), problem.weights()
    for value in (1.0, 1.0, 0.0, 0.0, 1.0):
        optimizer.step(lambda value=value: value)
    assert optimizer.skipped_steps == 0
    assert all(torch.isfinite(w).all() for w in problem.weights())
    assert same(problem.weights(), old)


def test_a_solved_problem_stays_solved() -> None:
    w = nn.Parameter(torch.zeros(4, dtype=DOUBLE))
    optimizer = Dopamine([w])
    for _ in range(20):
        optimizer.step(lambda: (w**2).sum() if float((w**2).sum()) > 1e-4 else 0.0)
    assert float(w.detach().abs().max()) == 0.0


# ---- in torch's company --------------------------------------------------------------------------


def test_step_hooks_are_called(row: Row) -> None:
    problem, heard = Regression(), []
    optimizer = row.make(problem.model.parameters())
    handles = [
        optimizer.register_step_pre_hook(lambda *_: heard.append("pre")),
        optimizer.register_step_post_hook(lambda *_: heard.append("post")),
    ]
    optimizer.step(lambda: (heard.append("closure"), problem.loss())[1])
    assert heard[0] == "pre"
    assert heard[-1] == "post"
    assert heard.count("closure") == optimizer.forward_passes
    for handle in handles:
        handle.remove()
    heard.clear()
    optimizer.step(problem.loss)
    assert heard == []


def test_global_hooks_are_called() -> None:
    heard: list[Any] = []
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    handle = register_optimizer_step_post_hook(lambda opt, *_: heard.append(opt))
    try:
        optimizer.step(problem.loss)
    finally:
        handle.remove()
    assert heard == [optimizer]


def test_a_hooked_step_is_the_same_step(any_row: Row) -> None:
    ends = []
    for hooked in (False, True):
        problem = Regression()
        optimizer = any_row.make(problem.model.parameters())
        if hooked:
            optimizer.register_step_post_hook(lambda *_: None)
        losses = [optimizer.step(problem.loss) for _ in range(3)]
        ends.append((problem.weights(), losses))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_the_profiler_sees_the_step() -> None:
    problem = Regression()
    optimizer = Dopamine(problem.model.parameters())
    with torch.autograd.profiler.profile() as profile:
        optimizer.step(problem.loss)
    assert profile is not None
    assert profile.function_events is not None
    assert "Optimizer.step#Dopamine.step" in {event.name for event in profile.function_events}


@pytest.mark.parametrize("enabled", [True, False])
def test_gradient_mode_is_as_before(row: Row, enabled: bool) -> None:
    problem = Regression()
    optimizer = row.make(problem.model.parameters())
    with torch.set_grad_enabled(enabled):
        optimizer.step(problem.loss)
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        assert torch.is_grad_enabled() is enabled
