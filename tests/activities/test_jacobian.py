"""The Jacobian that second-order steps take is autograd's, once feedback has learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dopaminergic import NodeDopamine, squared_error
from dopaminergic.node_optimizer import NodeChange
from optimizers import randn

x = randn(16, 4, seed=1)
sequence = randn(16, 5, 4, seed=2)


class Listening(NodeDopamine):
    """Keeps the Jacobian of its last step."""

    jacobian: Tensor | None = None

    def _second_order(
        self, before: Any, trial: Any, memory: Any, jacobian: Tensor, jacobians: Any
    ) -> NodeChange:
        self.jacobian = jacobian
        return super()._second_order(before, trial, memory, jacobian, jacobians)


class Case(NamedTuple):
    """Shapes of weights, and a network of one hidden layer that is made of them."""

    shapes: list[tuple[int, ...]]
    run: Callable[..., Tensor]


CASES: dict[str, Case] = {
    "matrices and biases": Case(
        [(4, 5), (5,), (5, 2), (2,)],
        lambda w, b, v, c: torch.tanh(x @ w + b) @ v + c,
    ),
    "linear layers": Case(
        [(5, 4), (5,), (2, 5), (2,)],
        lambda w, b, v, c: functional.linear(torch.tanh(functional.linear(x, w, b)), v, c),
    ),
    "weights on the left": Case(
        [(5, 4), (5, 1), (2, 5)], lambda w, b, v: (v @ torch.tanh(w @ x.t() + b)).t()
    ),
    "a vector for a readout": Case([(4, 5), (5,)], lambda w, v: torch.tanh(x @ w) @ v),
    "a vector of hidden units": Case([(4,), (1, 2)], lambda w, v: torch.tanh(x @ w)[:, None] @ v),
    "a scale of activities": Case([(4,), (4, 2)], lambda s, v: torch.tanh(x * s) @ v),
    "a norm": Case(
        [(4,), (4,), (4, 2)],
        lambda s, b, v: torch.tanh(functional.layer_norm(x, (4,), s, b)) @ v,
    ),
    "packed weights": Case(
        [(6, 4), (3, 2)],
        lambda w, v: (torch.tanh(x @ w[:3].t()) + torch.tanh(x @ w[3:].t())) @ v,
    ),
    "a row that is added to all": Case(
        [(4, 5), (4, 5), (5, 2)], lambda w, u, v: torch.tanh(x @ w + x[:1].detach() @ u) @ v
    ),
    "two products in one sum": Case(
        [(4, 5), (4, 5), (5, 2)], lambda w, u, v: torch.tanh(x @ w - (2 * x) @ u) @ v
    ),
    "places of a sequence": Case(
        [(4, 3), (3,), (3, 2)], lambda w, b, v: torch.tanh(sequence @ w + b) @ v
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_jacobian_is_that_of_autograd(name: str) -> None:
    shapes, run = CASES[name]
    weights = [nn.Parameter(randn(*shape, seed=i) / 2) for i, shape in enumerate(shapes)]
    values = run(*weights).detach()
    target = randn(*values.shape, seed=9)
    optimizer = Listening(weights, lr=0.0, sigma=1e-4)
    for _ in range(150):
        optimizer.step(lambda: squared_error(run(*weights), target))
    found = optimizer.jacobian
    assert found is not None
    parts = torch.autograd.functional.jacobian(run, tuple(w.detach() for w in weights))
    exact = torch.cat([part.reshape(values.numel(), -1) for part in parts], 1)
    torch.testing.assert_close(found[0].to(exact.dtype), exact, rtol=2e-3, atol=2e-3)


def test_what_has_no_rows_of_a_jacobian_is_trained_in_first_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    images = sequence.mT
    target = images[:, :2].mean(2)
    optimizer = Listening(model)
    losses = [optimizer.step(lambda: squared_error(model(images), target)) for _ in range(60)]
    assert optimizer.jacobian is None
    assert losses[-1] < 0.7 * losses[0]
