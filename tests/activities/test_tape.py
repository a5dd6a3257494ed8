"""The units of an evaluation: sums take the place of their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dopaminergic.activities.families import credited, families, gain_of
from dopaminergic.activities.nodes import Place, overlap
from dopaminergic.activities.tape import Tape
from optimizers import randn
from watched import assert_exact, estimated, watch

x = randn(6, 4, seed=1)
steps = randn(6, 5, 4, seed=2)


def weights_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(randn(*shape, seed=30 + i) / 2) for i, shape in enumerate(shapes)]


def found_in(seen: Any, weights: list[Any], times: int = 1, **options: Any) -> list[Any]:
    """The families of an evaluation of six samples."""
    trainable = {i for i, w in enumerate(weights) if w.requires_grad}
    trainable |= set(range(len(weights), len(weights) + len(seen.tape.derived)))
    units = credited(seen.tape.nodes, options.get("outcome"), trainable)
    return families(units, None, 6, times, 1e-3, str)


def cell(w: Tensor, u: Tensor, b: Tensor, out: Tensor) -> Tensor:
    h = x.new_zeros(6, 3)
    for t in range(5):
        h = torch.tanh(steps[:, t] @ w + h @ u + b)
    return h @ out


# ---- sums ----------------------------------------------------------------------------------------


def test_a_recurrent_cell_is_one_family_of_a_call_for_each_time_step() -> None:
    weights = weights_of((4, 3), (3, 3), (3,), (3, 2))
    seen = watch(lambda: cell(*weights), weights)
    (family,) = found_in(seen, weights, outcome=seen.node)
    assert family.shape == (1, 6, 5, 3)
    assert len(seen.left) == 5 + 1


def test_a_cell_of_the_library_of_torch_is_one_family_too() -> None:
    net = nn.RNNCell(4, 3).double()

    def run() -> Tensor:
        h = x.new_zeros(6, 3)
        for t in range(5):
            h = net(steps[:, t], h)
        return h @ x.new_ones(3, 2)

    weights = [*net.parameters()]
    tape = Tape([*weights], 1e-3)
    with torch.no_grad(), tape:
        tape.finish(run())
    units = credited(tape.nodes, None, set(range(4)))
    (family,) = families(units, None, 6, 1, 1e-3, str)
    assert family.shape == (1, 6, 5, 3)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_modules_of_recurrence_have_a_unit_for_each_gate_and_time_step(kind: Any) -> None:
    net = kind(4, 3, batch_first=True).double()
    weights = [*net.parameters()]
    tape = Tape([*weights], 1e-3)
    with torch.no_grad(), tape:
        tape.finish(net(steps)[0])
    units = credited(tape.nodes, None, set(range(4)))
    found = families(units, None, 6, 5, 1e-3, str)
    gates = sum(family.shape[3] for family in found)
    # A GRU reads its recurrent product before it adds the other, so that both are units.
    assert gates == {"GRU": 18, "LSTM": 12, "RNN": 3}[kind.__name__]
    assert all(family.shape[:3] == (1, 6, 5) for family in found)


SUMS: dict[str, Any] = {
    "a product added in place": lambda w, v: (x @ w).add_(x @ v),
    "a difference": lambda w, v: x @ w - x @ v,
    "a multiple": lambda w, v: torch.add(x @ w, x @ v, alpha=-3.0),
    "a sum with an activity": lambda w, v: (x @ w + x) + x @ v,
    "a row added to all": lambda w, v: x @ w + (x[:1] @ v),
    "a row added to all, first": lambda w, v: x[:1] @ v + x @ w,
    "a vector added to all": lambda w, v: x @ w + x[0] @ v,
    "a column of what is known": lambda w, v: x @ w + (x @ v)[:, :1],
    "a transposed part": lambda w, v: (x[:4] @ w).t() + x[:4] @ v,
    "one product added twice": lambda w, v: (lambda h: h + h)(x @ w) + x @ v,
    "a sum of a product with itself transposed": lambda w, v: (
        (lambda h: h + h.t())(x[:4] @ w) + x[:4] @ v
    ),
    "addmm onto a product": lambda w, v: torch.addmm(x @ w, x, v, beta=2.0),
    "a view of another shape": lambda w, v: (x @ w).view(2, 3, 4) + (x @ v).view(2, 3, 4),
    "columns side by side": lambda w, v: (
        (steps @ w).unflatten(2, (2, 2))[:, :, 0] + (steps @ v).unflatten(2, (2, 2))[:, :, 1]
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_credit_of_a_sum_is_that_of_all_that_it_adds_up(name: str) -> None:
    weights = weights_of((4, 4), (4, 4))
    seen = assert_exact(lambda: SUMS[name](*weights), weights)
    assert seen.left == [seen.node]


def test_beyond_an_activation_a_weight_gets_no_credit_from_the_sum() -> None:
    weights = weights_of((4, 4), (4, 4))
    seen = watch(lambda: x @ weights[0] + (x @ weights[0]).tanh() @ weights[1], weights)
    credit = randn(6, 4)
    found = estimated(seen, credit, weights)
    torch.testing.assert_close(found[0], x.T @ credit)
    torch.testing.assert_close(found[1], (x @ weights[0].detach()).tanh().T @ credit)


def test_a_part_that_is_read_elsewhere_stays_a_unit() -> None:
    (w, v) = weights_of((4, 4), (4, 4))

    def run() -> Tensor:
        first = x @ w
        return first + first.tanh() @ v

    seen = watch(run, [w, v])
    assert len(seen.left) == 2


def test_activations_in_place_end_a_node_as_others_do() -> None:
    weights = weights_of((4, 4), (4, 2))
    ends = []
    for relu in (torch.relu, torch.relu_):
        seen = watch(lambda relu=relu: relu(x @ weights[0]) @ weights[1], weights)
        first, last = seen.left
        ends.append((gain_of(first), estimated(seen, randn(6, 2), weights)))
        assert last is seen.node
    torch.testing.assert_close(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1])


def test_what_is_added_after_an_activation_in_place_is_no_part_of_the_node_before() -> None:
    (w, v) = weights_of((4, 4), (4, 4))
    seen = watch(lambda: (x @ w).relu_().add_(x @ v), [w, v])
    found = estimated(seen, randn(6, 4), [w, v])
    assert sorted(found) == [1]
    assert len(seen.left) == 2


# ---- gains ---------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Any] = {
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "a square": lambda h: h * h,
    "a chain": lambda h: torch.exp(-(h.abs()) / 2),
    "a swish by hand": lambda h: h * torch.sigmoid(h),
    "hardtanh": functional.hardtanh,
    "leaky relu": functional.leaky_relu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gains_are_the_slopes_of_activations(name: str) -> None:
    (w, v) = weights_of((4, 5), (5, 2))
    act = ACTIVATIONS[name]
    seen = watch(lambda: act(x @ w) @ v, [w, v])
    h = (x @ w).detach().requires_grad_()
    (slope,) = torch.autograd.grad(act(h).sum(), h)
    torch.testing.assert_close(gain_of(seen.left[0]), slope, rtol=1e-3, atol=1e-5)


def test_each_chunk_of_a_node_has_the_slope_of_its_own_activation() -> None:
    (w, v) = weights_of((4, 6), (2, 2))

    def run() -> Tensor:
        a, b, c = (x @ w).chunk(3, 1)
        return (a.tanh() * b.sigmoid() + c.relu()) @ v

    seen = watch(run, [w, v])
    a, b, c = (x @ w).detach().chunk(3, 1)
    expected = torch.cat([1 - a.tanh() ** 2, b.sigmoid() * (1 - b.sigmoid()), (c > 0) * 1.0], 1)
    torch.testing.assert_close(gain_of(seen.left[0]), expected, rtol=1e-3, atol=1e-5)


def test_a_gate_that_is_read_as_z_and_as_1_minus_z_has_the_slope_of_z() -> None:
    (w, v, out) = weights_of((4, 5), (4, 5), (5, 2))

    def run() -> Tensor:
        z = (x @ w).sigmoid()
        return (z * x.new_ones(6, 5) + (1 - z) * (x @ v).tanh()) @ out

    seen = watch(run, [w, v, out])
    z = (x @ w).detach().sigmoid()
    torch.testing.assert_close(gain_of(seen.left[0]), z * (1 - z), rtol=1e-3, atol=1e-5)


DIRECT: dict[str, Any] = {
    "a residual": lambda h, v: h + h.tanh() @ v,
    "a residual, last": lambda h, v: h.tanh() @ v + h,
    "a sum of both": lambda h, v: (h + h.tanh()) @ v,
    "a difference": lambda h, v: h - h.tanh() @ v,
    "a product": lambda h, v: h.tanh() @ v + h @ v,
    "side by side": lambda h, v: torch.stack([h, h.tanh()]).sum(0) @ v,
    "a norm": lambda h, v: h.tanh() @ v + functional.layer_norm(h, (4,)) @ v,
}


@pytest.mark.parametrize("name", DIRECT)
def test_a_read_without_an_activation_counts_as_a_slope_of_1(name: str) -> None:
    (w, v) = weights_of((4, 4), (4, 4))
    seen = watch(lambda: DIRECT[name](x @ w, v) + x, [w, v])
    slope = 1.0 - (x @ w).detach().tanh().square()
    torch.testing.assert_close(gain_of(seen.tape.nodes[0]), (1 + slope) / 2, rtol=1e-3, atol=1e-5)


def test_a_column_that_is_read_by_itself_alone_counts_so() -> None:
    (w, v) = weights_of((4, 4), (4, 4))
    seen = watch(
        lambda: (x @ w).tanh() @ v + (lambda h: h[:, 1:2] * x + h.tanh())(x @ w) @ v, [w, v]
    )
    made = [node for node in seen.tape.nodes if node.synapses]
    first, second = (node for node in made if node.synapses[0].weight.number == 0)
    slope = 1.0 - (x @ w).detach().tanh().square()
    torch.testing.assert_close(gain_of(first), slope, rtol=1e-3, atol=1e-5)
    slope[:, 1] = (1.0 + slope[:, 1]) / 2.0
    torch.testing.assert_close(gain_of(second), slope, rtol=1e-3, atol=1e-5)


def test_an_expanded_node_has_the_slope_of_its_activation() -> None:
    (w, v) = weights_of((4, 1), (4, 2))
    seen = watch(lambda: (x @ w).expand(6, 4).tanh() @ v, [w, v])
    slope = 1.0 - (x @ w).detach().tanh().square()
    torch.testing.assert_close(gain_of(seen.left[0]), slope, rtol=1e-3, atol=1e-5)


def test_staircases_are_moved_as_far_as_their_inputs_reach() -> None:
    (w, v) = weights_of((4, 5), (5, 2))
    seen = watch(lambda: torch.sign(x @ w) @ v, [w, v])
    torch.testing.assert_close(
        seen.left[0].reach, float((x @ w).detach().square().mean().sqrt()), rtol=1e-6, atol=0.0
    )


# ---- weights that are no sites -------------------------------------------------------------------

STRANGE: dict[str, Any] = {
    "the exponential of a weight": lambda w: x @ w.exp(),
    "a product of two weights": lambda w: x @ (w @ w),
    "a weight that is normalised": lambda w: x @ (w / w.norm()),
    "the softmax of a weight": lambda w: x @ w.softmax(0),
    "a distance to a weight": lambda w: torch.cdist(x, w),
    "a weight of a maximum": lambda w: torch.maximum(x[:4], w),
    "a division by a weight": lambda w: x[:4] / w,
    "a weight in place of a scatter": lambda w: torch.where(x[:4] > 0, w, x[:4]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_uses_are_noted_with_the_number_of_the_weight(name: str) -> None:
    (w,) = weights_of((4, 4))
    tape = Tape([w], 1e-3)
    with torch.no_grad(), tape:
        STRANGE[name](w)
    assert list(tape.strange) == [0]


def test_frozen_weights_are_perturbed_only_where_a_trainable_one_enters_too() -> None:
    (w, v, out) = weights_of((4, 4), (4, 4), (4, 2))
    w.requires_grad_(False)
    seen = watch(lambda: (x @ w).tanh() @ v @ out, [w, v, out])
    (family,) = found_in(seen, [w, v, out], outcome=seen.node)
    assert family.name == "1"


def test_a_module_that_is_called_twice_has_calls_in_one_family() -> None:
    (w, out) = weights_of((4, 4), (4, 2))
    seen = watch(lambda: torch.tanh(torch.tanh(x @ w) @ w) @ out, [w, out])
    (family,) = found_in(seen, [w, out], outcome=seen.node)
    assert family.shape == (1, 6, 2, 4)


def test_an_inner_view_of_the_result_is_found_as_the_outcome() -> None:
    weights = weights_of((4, 6))
    for view in (
        lambda h: h[:, 0],
        lambda h: h.view(6, 2, 3),
        lambda h: h.view(6, 3, 2).mT,
        lambda h: h[:, ::2],
        lambda h: h.t(),
        lambda h: h.squeeze(),
        lambda h: h.unsqueeze(1).unsqueeze_(0),
        lambda h: h.view(6, 1, 6).squeeze_(1).t_(),
    ):
        assert_exact(lambda view=view: view(x @ weights[0]), weights)


def test_places_of_memory_overlap_where_they_share_an_element() -> None:
    whole = torch.zeros(6, 4)
    views = [whole, whole[:, 1], whole[:, 2:], whole[3:], whole.t(), whole[::2, ::3]]
    for one in views:
        for other in views:
            whole.zero_()
            one.add_(1.0)
            other.add_(1.0)
            assert overlap(Place.of(one), Place.of(other)) == bool(
                (whole == 2.0).any() or one is other
            )
