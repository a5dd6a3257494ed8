"""Where weights meet activities: estimates from credit are autograd's gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dopaminergic.activities import synapses
from optimizers import randn
from watched import assert_exact, watch

aten: Any = torch.ops.aten
Run = Callable[..., Tensor]

x = randn(5, 3, seed=1)
batch = randn(4, 5, 3, seed=2)
images = randn(2, 4, 7, 6, seed=3)
line = randn(2, 4, 9, seed=4)
volume = randn(2, 3, 4, 5, 4, seed=5)
numbers = torch.tensor([[0, 3, 3], [6, 1, 0]])
MEAN, VARIANCE = randn(4, seed=6), randn(4, seed=7).square() + 0.5

# By name: shapes of the weights, and what is done with them.
PRODUCTS: dict[str, tuple[list[tuple[int, ...]], Run]] = {
    "mm, weight on the right": ([(3, 2)], lambda w: torch.mm(x, w)),
    "mm, weight on the left": ([(2, 5)], lambda w: torch.mm(w, x)),
    "mm, weight transposed": ([(2, 3)], lambda w: torch.mm(x, w.t())),
    "mm, weight on the left, transposed": ([(5, 2)], lambda w: torch.mm(w.t(), x)),
    "bmm, weight on the right": ([(4, 3, 2)], lambda w: torch.bmm(batch, w)),
    "bmm, weight on the left": ([(4, 2, 5)], lambda w: torch.bmm(w, batch)),
    "bmm, weight transposed": ([(4, 2, 3)], lambda w: torch.bmm(batch, w.mT)),
    "bmm, weight expanded": ([(3, 2)], lambda w: torch.bmm(batch, w.expand(4, 3, 2))),
    "bmm, weight expanded on the left": (
        [(2, 5)],
        lambda w: torch.bmm(w.expand(4, 2, 5), batch),
    ),
    "mv, weight on the right": ([(3,)], lambda w: torch.mv(x, w)),
    "mv, weight on the left": ([(2, 3)], lambda w: torch.mv(w, x[0])),
    "addmv, weight on the right": ([(3,), (5,)], lambda w, b: torch.addmv(b, x, w)),
    "addmv, weight on the left": (
        [(2, 3), (2,)],
        lambda w, b: torch.addmv(b, w, x[0], beta=0.3, alpha=-2.0),
    ),
    "matmul of a batch": ([(3, 2)], lambda w: batch @ w),
    "matmul of a vector": ([(3, 2)], lambda w: x[0] @ w),
    "linear without bias": ([(2, 3)], lambda w: functional.linear(batch, w)),
    "linear with bias": ([(2, 3), (2,)], lambda w, b: functional.linear(batch, w, b)),
    "linear of one sample": ([(2, 3), (2,)], lambda w, b: functional.linear(x[0], w, b)),
    "bilinear written as products": ([(3, 2)], lambda w: (x * (x @ x.new_ones(3, 3))) @ w),
    "addmm, bias a row": ([(3, 2), (2,)], lambda w, b: torch.addmm(b, x, w)),
    "addmm, bias a matrix": ([(3, 2), (5, 2)], lambda w, b: torch.addmm(b, x, w)),
    "addmm, bias a column": ([(3, 2), (5, 1)], lambda w, b: torch.addmm(b, x, w)),
    "addmm, beta and alpha": (
        [(3, 2), (2,)],
        lambda w, b: torch.addmm(b, x, w, beta=-0.5, alpha=3.0),
    ),
    "addmm, weight on the left": ([(2, 5), (3,)], lambda w, b: torch.addmm(b, w, x)),
    "addmm, only the bias a weight": ([(2,)], lambda b: torch.addmm(b, x, randn(3, 2))),
    "addmm, the bias an activity": ([(3, 2)], lambda w: torch.addmm(randn(5, 2), x, w)),
    "baddbmm": ([(4, 3, 2), (4, 1, 2)], lambda w, b: torch.baddbmm(b, batch, w)),
    "baddbmm, beta and alpha": (
        [(4, 3, 2), (4, 5, 2)],
        lambda w, b: torch.baddbmm(b, batch, w, beta=0.25, alpha=-1.5),
    ),
    "einsum": ([(3, 2)], lambda w: torch.einsum("bti,io->bto", batch, w)),
    "einsum, weight for each of a batch": (
        [(4, 3, 2)],
        lambda w: torch.einsum("bti,bio->bto", batch, w),
    ),
}
CONVOLUTIONS: dict[str, tuple[list[tuple[int, ...]], Run]] = {
    "1d": ([(3, 4, 2), (3,)], lambda w, b: functional.conv1d(line, w, b)),
    "1d, without bias": ([(3, 4, 2)], lambda w: functional.conv1d(line, w)),
    "1d of one sample": ([(3, 4, 2), (3,)], lambda w, b: functional.conv1d(line[0], w, b)),
    "2d": ([(3, 4, 2, 3), (3,)], lambda w, b: functional.conv2d(images, w, b)),
    "2d, strided and padded": (
        [(3, 4, 3, 3), (3,)],
        lambda w, b: functional.conv2d(images, w, b, stride=(2, 1), padding=1),
    ),
    "2d, dilated": ([(3, 4, 2, 2), (3,)], lambda w, b: functional.conv2d(images, w, b, dilation=2)),
    "2d, grouped": ([(6, 2, 2, 2), (6,)], lambda w, b: functional.conv2d(images, w, b, groups=2)),
    "2d, of single channels": (
        [(4, 1, 2, 2), (4,)],
        lambda w, b: functional.conv2d(images, w, b, groups=4),
    ),
    "2d, padded to the same size": (
        [(3, 4, 3, 3), (3,)],
        lambda w, b: functional.conv2d(images, w, b, padding="same"),
    ),
    "2d, transposed": (
        [(4, 3, 2, 2), (3,)],
        lambda w, b: functional.conv_transpose2d(images, w, b),
    ),
    "2d, transposed, strided, grouped": (
        [(4, 3, 3, 3), (6,)],
        lambda w, b: functional.conv_transpose2d(
            images, w, b, stride=2, padding=1, output_padding=1, groups=2
        ),
    ),
    "1d, transposed": ([(4, 3, 3), (3,)], lambda w, b: functional.conv_transpose1d(line, w, b)),
    "3d": ([(2, 3, 2, 2, 2), (2,)], lambda w, b: functional.conv3d(volume, w, b)),
    "2d, a sliced kernel": (
        [(5, 4, 2, 2), (5,)],
        lambda w, b: functional.conv2d(images, w[1:4], b[1:4]),
    ),
    "2d, a frozen bias": ([(3, 4, 2, 2)], lambda w: functional.conv2d(images, w, randn(3))),
}
ROWS: dict[str, tuple[list[tuple[int, ...]], Run]] = {
    "embedding": ([(7, 2)], lambda w: functional.embedding(numbers, w)),
    "embedding with padding": ([(7, 2)], lambda w: functional.embedding(numbers, w, padding_idx=3)),
    "embedding with padding 0": (
        [(7, 2)],
        lambda w: functional.embedding(numbers, w, padding_idx=0),
    ),
    "embedding of transposed weights": ([(2, 7)], lambda w: functional.embedding(numbers, w.t())),
    "index": ([(7, 2)], lambda w: w[numbers]),
    "index with negative numbers": ([(7, 2)], lambda w: w[numbers - 7]),
    "index of a vector": ([(7,)], lambda w: w[numbers]),
    "index of later dimensions": ([(2, 7)], lambda w: w[:, numbers[0]]),
    "index by a mask": ([(2, 7)], lambda w: w[:, numbers[0].new_tensor([1, 0, 1, 1, 0, 0, 1]) > 0]),
    "index by lists with a gap": ([(2, 3, 7)], lambda w: w[numbers[:, :2] % 2, :, numbers[:, 1:]]),
    "index by two lists": ([(7, 2)], lambda w: w[numbers[0], numbers[0] % 2]),
    "index_select of rows": ([(7, 2)], lambda w: torch.index_select(w, 0, numbers[0])),
    "index_select of columns": ([(2, 7)], lambda w: torch.index_select(w, 1, numbers[0])),
    "index_select of last columns": ([(2, 7)], lambda w: torch.index_select(w, -1, numbers[0])),
    "gather": ([(7, 3)], lambda w: torch.gather(w, 0, numbers)),
    "gather of columns": ([(2, 7)], lambda w: torch.gather(w, 1, numbers)),
}
FACTORS: dict[str, tuple[list[tuple[int, ...]], Run]] = {
    "add a row": ([(3,)], lambda b: x + b),
    "add to a row": ([(3,)], lambda b: b + x),
    "add a column": ([(5, 1)], lambda b: x + b),
    "add a multiple": ([(3,)], lambda b: torch.add(x, b, alpha=-2.5)),
    "add a number that is a weight": ([()], lambda b: x + b),
    "subtract a row": ([(3,)], lambda b: x - b),
    "subtract from a row": ([(3,)], lambda b: b - x),
    "subtract a multiple": ([(3,)], lambda b: torch.sub(x, b, alpha=0.5)),
    "add two weights": ([(3,), (5, 1)], lambda a, b: (x + a) + b),
    "add in place": ([(3,)], lambda b: x.clone().add_(b)),
    "add in place, a multiple": ([(3,)], lambda b: x.clone().add_(b, alpha=3.0)),
    "subtract in place": ([(3,)], lambda b: x.clone().sub_(b)),
    "multiply by a row": ([(3,)], lambda w: x * w),
    "multiply a row": ([(3,)], lambda w: w * x),
    "multiply by a column": ([(5, 1)], lambda w: x * w),
    "multiply by a number that is a weight": ([()], lambda w: x * w),
    "multiply in place": ([(3,)], lambda w: x.clone().mul_(w)),
    "addcmul": ([(3,)], lambda w: torch.addcmul(randn(5, 3), x, w, value=0.7)),
    "addcmul to a weight": ([(3,), (3,)], lambda b, w: torch.addcmul(b, x, w)),
    "addcmul, only the sum a weight": ([(3,)], lambda b: torch.addcmul(b, x, x)),
    "divide by a number": ([(3,)], lambda w: x * (w / 3)),
    "layer norm": ([(3,), (3,)], lambda w, b: functional.layer_norm(batch, (3,), w, b)),
    "layer norm over two": (
        [(5, 3), (5, 3)],
        lambda w, b: functional.layer_norm(batch, (5, 3), w, b),
    ),
    "layer norm, no shift": ([(3,)], lambda w: functional.layer_norm(batch, (3,), w)),
    "batch norm in training": (
        [(4,), (4,)],
        lambda w, b: functional.batch_norm(images, None, None, w, b, training=True),
    ),
    "batch norm of rows in training": (
        [(3,), (3,)],
        lambda w, b: functional.batch_norm(x, None, None, w, b, training=True),
    ),
    "batch norm in evaluation": (
        [(4,), (4,)],
        lambda w, b: functional.batch_norm(images, MEAN, VARIANCE, w, b),
    ),
    "group norm": ([(4,), (4,)], lambda w, b: functional.group_norm(images, 2, w, b)),
    "group norm of a line": ([(4,), (4,)], lambda w, b: functional.group_norm(line, 4, w, b)),
    "rms norm": ([(3,)], lambda w: functional.rms_norm(batch, (3,), w)),
    "PReLU": ([(1,)], lambda w: functional.prelu(images, w)),
    "PReLU of channels": ([(4,)], lambda w: functional.prelu(images, w)),
}
VIEWS: dict[str, tuple[list[tuple[int, ...]], Run]] = {
    "twice a weight": ([(3, 2)], lambda w: x @ (2 * w)),
    "a third of a weight": ([(3, 2)], lambda w: x @ (w / 3)),
    "a negative weight": ([(3, 2)], lambda w: x @ -w),
    "a weight and one": ([(3,)], lambda w: x * (w + 1)),
    "one less a weight": ([(3,)], lambda w: x * (1 - w)),
    "a weight less one": ([(3,)], lambda w: x * (w - 1.0)),
    "a copy": ([(3, 2)], lambda w: x @ w.clone()),
    "a copy of the transposed": ([(2, 3)], lambda w: x @ w.t().contiguous()),
    "a multiple of a multiple": ([(2, 3)], lambda w: x @ (-(2 * w)).t().contiguous()),
    "a multiple of a slice": ([(6, 3)], lambda w: x @ (0.5 * w[2:4]).t()),
    "a slice": ([(3, 6)], lambda w: x @ w[:, 1:3]),
    "every second column": ([(3, 6)], lambda w: x @ w[:, ::2]),
    "a reshaped weight": ([(6,)], lambda w: x @ w.view(3, 2)),
    "one weight on both sides of a sum": ([(3, 2)], lambda w: x @ w + (2 * x) @ w),
    "a masked weight": ([(3, 2)], lambda w: x @ (w * (randn(3, 2) > 0))),
    "a mask of rows": ([(3, 2)], lambda w: x @ ((randn(3, 1) > 0) * w)),
    "a number that is a tensor": ([(3, 2)], lambda w: x @ (w * torch.tensor(0.3))),
    "a row by a number that is a tensor": ([(3,)], lambda w: x + w * torch.tensor(0.3)),
    "a masked weight of a convolution": (
        [(3, 4, 2, 2)],
        lambda w: functional.conv2d(images, w * (randn(2, 2) > 0)),
    ),
    "two slices of packed weights": (
        [(6, 3), (6,)],
        lambda w, b: functional.linear(x, w[:3], b[:3]) + functional.linear(2 * x, w[3:], b[3:]),
    ),
    "overlapping slices": ([(4, 3)], lambda w: x @ w[:3].t() + x @ w[1:].t()),
    "chunks": ([(6, 3)], lambda w: x @ w.chunk(2)[0].t() - x @ w.chunk(2)[1].t()),
    "an unbound weight": ([(2, 3, 2)], lambda w: x @ w.unbind(0)[0] + x @ w.unbind(0)[1]),
}


def cases(*tables: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name) for table in tables for name, case in table.items()]
    )


def drawn(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    return [nn.Parameter(randn(*shape, seed=20 + i)) for i, shape in enumerate(shapes)]


@cases(PRODUCTS, CONVOLUTIONS, ROWS, FACTORS, VIEWS)
def test_the_estimate_is_the_gradient_of_credit_times_result(case: Any) -> None:
    shapes, run = case
    weights = drawn(shapes)
    assert_exact(lambda: run(*weights), weights)


@cases(PRODUCTS, CONVOLUTIONS, ROWS, FACTORS, VIEWS)
def test_slices_of_one_storage_are_weights_of_their_own(case: Any) -> None:
    shapes, run = case
    sizes = [torch.Size(shape).numel() for shape in shapes]
    whole = randn(sum(sizes), seed=21)
    parts = whole.split(sizes)
    weights = [nn.Parameter(p.view(s)) for p, s in zip(parts, shapes, strict=True)]
    assert_exact(lambda: run(*weights), weights)


def test_every_site_is_met_by_some_test() -> None:
    met: set[Any] = set()
    for table in (PRODUCTS, CONVOLUTIONS, ROWS, FACTORS, VIEWS):
        for shapes, run in table.values():
            weights = drawn(shapes)
            seen = watch(lambda run=run, weights=weights: run(*weights), weights)
            met |= {node.operation for node in seen.tape.nodes}
    assert met == set(synapses.SITES)


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_weights_get_no_estimate(frozen: int) -> None:
    weights = drawn([(2, 3), (2,)])
    weights[frozen].requires_grad_(False)
    assert_exact(lambda: functional.linear(x, *weights), weights)


def test_summed_to_undoes_any_broadcast() -> None:
    credit = randn(4, 5, 3)
    for shape in [(), (3,), (1,), (5, 1), (1, 5, 3), (4, 1, 3), (4, 5, 3), (1, 1, 1)]:
        leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        (exact,) = torch.autograd.grad(leaf.expand(4, 5, 3), leaf, credit)
        torch.testing.assert_close(synapses.summed_to(credit, shape), exact)
