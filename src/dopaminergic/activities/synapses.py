"""How weights meet activities in torch's operations, and how credit becomes an estimate for them.

    dW = presynaptic activity x credit of the postsynaptic input

An operation is linear in each of its weights, with factors that the forward pass has computed:
inputs of a matrix product, normalised activities of a norm, ones for a bias. So the estimate of
every kind of weight is a product of two activities.

Four kinds are enough:

- `Matrix`: out = v W; dW = v' e. For example linear layers and recurrent products.
- `Kernel`: a convolution of v with W.
- `Factor`: out = x * w, or out = x + w with x = 1; dw = x * e. For example norms and biases.
- `Rows`: out = rows of w; dw adds e to those rows. For example embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dopaminergic.activities.nodes import Weight
    from dopaminergic.activities.tape import Tape

aten: Any = torch.ops.aten


class Synapse(NamedTuple):
    """A weight that enters a node.

    Attributes:
        weight: a view of a parameter.
        kind: `"matrix"`, `"kernel"`, `"factor"` or `"rows"`.
        factor: on the product.
        inputs: v of a matrix, `(..., rows, P)`; of a kernel its images; x of a factor, or None for
            ones; the rows' numbers.
        turned: the result of a matrix product is transposed, `(..., U, rows)`.
        estimate: of a kernel or rows: maps inputs and credit to the estimate for the weight.
    """

    weight: Weight
    kind: str
    factor: float = 1.0
    inputs: Any = None
    turned: bool = False
    estimate: Callable[[Any, Tensor], Tensor] | None = None


class Site(NamedTuple):
    """An operation in which weights take part.

    Attributes:
        synapses: its weights, or a function of its result that tells them.
        read: activities, and numbers of rows, that it reads other than by adding them.
        added: tensors that it adds, each with its factor.
    """

    synapses: Any
    read: list[Tensor]
    added: list[tuple[Any, float]]


def summed_to(credit: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The credit of something that was broadcast.

    >>> summed_to(torch.ones(5, 2, 3), (3,))
    tensor([10., 10., 10.])
    """
    extra = credit.ndim - len(shape)
    if extra:
        credit = credit.flatten(0, extra - 1).sum(0)
    dims = [i for i, n in enumerate(shape) if n == 1 and credit.shape[i] != 1]
    return credit.sum(dims, keepdim=True) if dims else credit


def _bias(tape: Tape, bias: Any, factor: float) -> tuple[list[Synapse], list[tuple[Any, float]]]:
    """Something that is added: a weight, or an activity."""
    weight = tape.weight(bias)
    if weight is not None:
        return [Synapse(weight, "factor", factor)], []
    return [], [(bias, factor)]


def _product(tape: Tape, left: Tensor, right: Tensor, factor: float) -> tuple[Any, Any]:
    """A product of a weight and an activity; two Nones where it is something else."""
    first = tape.weight(left)
    second = tape.weight(right)
    if second is not None and first is None:
        if right.ndim == 1:  # a vector is one column
            place = second.place
            place = place._replace(shape=(*place.shape, 1), stride=(*place.stride, 1))
            second = second._replace(place=place)
        return Synapse(second, "matrix", factor, left), left
    if first is not None and second is None:
        first = first._replace(place=_transposed(first.place))
        inputs = right
        inputs = inputs[:, None].mT if inputs.ndim == 1 else inputs.mT
        return Synapse(first, "matrix", factor, inputs, turned=True), right
    return None, None


def _transposed(place: Any) -> Any:
    shape, stride = list(place.shape), list(place.stride)
    shape[-2:] = shape[:-3:-1]
    stride[-2:] = stride[:-3:-1]
    return place._replace(shape=tuple(shape), stride=tuple(stride))


def _multiply(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    synapse, read = _product(tape, args[0], args[1], 1.0)
    return None if synapse is None else Site([synapse], [read], [])


def _multiply_and_add(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    bias, left, right = args[:3]
    beta = kwargs.get("beta", args[3] if len(args) > 3 else 1)
    alpha = kwargs.get("alpha", args[4] if len(args) > 4 else 1)
    synapse, read = _product(tape, left, right, float(alpha))
    synapses, added = _bias(tape, bias, float(beta))
    if synapse is None and not synapses:
        return None
    if synapse is None:
        return Site(synapses, [left, right], added)
    return Site([synapse, *synapses], [read], added)


def _add(tape: Tape, args: Any, kwargs: Any, sign: float = 1.0) -> Site | None:
    left, right = args[:2]
    alpha = sign * float(kwargs.get("alpha", 1))
    first, added = _bias(tape, left, 1.0)
    second, more = _bias(tape, right, alpha)
    return Site([*first, *second], [], [*added, *more]) if first or second else None


def _subtract(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    return _add(tape, args, kwargs, -1.0)


def _scale(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    left, right = args[:2]
    first = tape.weight(left)
    second = tape.weight(right)
    if (first is None) == (second is None) or not isinstance(right, Tensor):
        return None
    weight, inputs = (first, right) if first is not None else (second, left)
    return Site([Synapse(weight, "factor", 1.0, inputs)], [inputs], [])  # pyright: ignore[reportArgumentType]


def _scale_in_place(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    found = _scale(tape, args, kwargs)
    if found is None:
        return None
    return found._replace(
        synapses=[synapse._replace(inputs=synapse.inputs.clone()) for synapse in found.synapses]
    )


def _scale_and_add(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    value = float(kwargs.get("value", 1))
    found = _scale(tape, args[1:3], {})
    synapses, added = _bias(tape, args[0], 1.0)
    if found is None:
        return Site(synapses, list(args[1:3]), added) if synapses else None
    scaled = [synapse._replace(factor=value) for synapse in found.synapses]
    return Site([*scaled, *synapses], found.read, added)


def _convolve(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    images, kernel, bias, *how = args
    weight = tape.weight(kernel)
    shift = None if bias is None else tape.weight(bias)
    if weight is None or tape.weight(images) is not None:
        return None
    shape = tuple(kernel.shape)

    def estimate(images: Tensor, credit: Tensor) -> Tensor:
        like = credit.new_empty(1).expand(shape)
        return aten.convolution_backward(credit, images, like, None, *how, [False, True, False])[1]

    synapses = [Synapse(weight, "kernel", 1.0, images, estimate=estimate)]
    if shift is not None:
        # One number for each channel: the second dimension of the result.
        place = shift.place
        ones = (1,) * (images.ndim - 2)
        place = place._replace(shape=place.shape + ones, stride=place.stride + (0,) * len(ones))
        synapses.append(Synapse(shift._replace(place=place), "factor"))
    return Site(synapses, [images], [])


def _embed(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    table, numbers = args[:2]
    padding = kwargs.get("padding_idx", args[2] if len(args) > 2 else -1)
    return _rows(tape, table, 0, numbers, padding)


def _rows(tape: Tape, table: Any, dim: int, numbers: Tensor, padding: int = -1) -> Site | None:
    weight = tape.weight(table)
    if weight is None:
        return None
    shape = tuple(table.shape)

    def estimate(numbers: Any, credit: Tensor) -> Tensor:
        found = credit.new_zeros(shape)
        found.index_add_(dim, numbers.flatten(), credit.flatten(dim, dim + numbers.ndim - 1))
        if padding >= 0:
            found.select(dim, padding).zero_()
        return found

    return Site([Synapse(weight, "rows", 1.0, numbers, estimate=estimate)], [numbers], [])


def _select(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    table, dim, numbers = args[:3]
    return _rows(tape, table, dim % table.ndim, numbers)


def _index(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    table, numbers = args[:2]
    weight = tape.weight(table)
    if weight is None:
        return None
    shape = tuple(table.shape)

    def estimate(numbers: Any, credit: Tensor) -> Tensor:
        return aten.index_put_(credit.new_zeros(shape), numbers, credit, True)

    read = [one for one in numbers if one is not None]
    return Site([Synapse(weight, "rows", 1.0, numbers, estimate=estimate)], read, [])


def _gather(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    table, dim, numbers = args[:3]
    weight = tape.weight(table)
    if weight is None:
        return None
    shape = tuple(table.shape)

    def estimate(numbers: Any, credit: Tensor) -> Tensor:
        return credit.new_zeros(shape).scatter_add_(dim, numbers, credit)

    return Site([Synapse(weight, "rows", 1.0, numbers, estimate=estimate)], [numbers], [])


def _norm_of(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - mean) * scale


def _affine(tape: Tape, scale: Any, shift: Any, shape: tuple[int, ...], normal: Any) -> Any:
    """The two weights that follow a norm.

    Args:
        tape: the record.
        scale: multiplies the normalised activities, or None.
        shift: is added to them, or None.
        shape: in which the weights are broadcast to the result.
        normal: maps the operation's result to the normalised activities.
    """
    entries = [(tape.weight(scale), True), (tape.weight(shift), False)]
    if all(weight is None for weight, _ in entries):
        return None

    def synapses(result: Any) -> list[Synapse]:
        found: list[Synapse] = []
        for weight, scales in entries:
            if weight is None:
                continue
            stride = iter(weight.place.stride)
            spread = tuple(0 if n == 1 else next(stride) for n in shape)
            if len(weight.place.shape) == len(shape):
                spread = weight.place.stride
            place = weight.place._replace(shape=shape, stride=spread)
            inputs = normal(result) if scales else None
            found.append(Synapse(weight._replace(place=place), "factor", 1.0, inputs))
        return found

    return synapses


def _layer_norm(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    x, shape, scale, shift = args[:4]
    synapses = _affine(
        tape, scale, shift, tuple(shape), lambda result: _norm_of(x, result[1], result[2])
    )
    return None if synapses is None else Site(synapses, [x], [])


def _batch_norm(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    x, scale, shift, mean, variance, training, _, epsilon = args[:8]
    shape = (x.shape[1], *(1,) * (x.ndim - 2))
    known = None
    if not training:
        known = mean.clone(), (variance + epsilon).rsqrt()

    def normal(result: Any) -> Tensor:
        center, spread = known or result[1:3]
        return _norm_of(x, center.view(shape), spread.view(shape))

    synapses = _affine(tape, scale, shift, shape, normal)
    return None if synapses is None else Site(synapses, [x], [])


def _group_norm(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    x, scale, shift, count, channels, _, groups, _ = args[:8]
    shape = (channels, *(1,) * (x.ndim - 2))

    def normal(result: Any) -> Tensor:
        parts = x.reshape(count, groups, -1)
        center, spread = (part.view(count, groups, 1) for part in result[1:3])
        return _norm_of(parts, center, spread).view(x.shape)

    synapses = _affine(tape, scale, shift, shape, normal)
    return None if synapses is None else Site(synapses, [x], [])


def _negative_slope(tape: Tape, args: Any, kwargs: Any) -> Site | None:
    x, slope = args[:2]
    weight = tape.weight(slope)
    if weight is None or tape.weight(x) is not None:
        return None
    return Site([Synapse(weight, "factor", 1.0, x.clamp(max=0.0))], [x], [])


Reader = Callable[["Tape", Any, Any], Site | None]
SITES: dict[Any, Reader] = {
    aten.mm.default: _multiply,
    aten.bmm.default: _multiply,
    aten.mv.default: _multiply,
    aten.addmm.default: _multiply_and_add,
    aten.addmv.default: _multiply_and_add,
    aten.baddbmm.default: _multiply_and_add,
    aten.convolution.default: _convolve,
    aten.embedding.default: _embed,
    aten.index_select.default: _select,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.sub_.Tensor: _subtract,
    aten.mul.Tensor: _scale,
    aten.mul_.Tensor: _scale_in_place,
    aten.addcmul.default: _scale_and_add,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten._prelu_kernel.default: _negative_slope,
}


def _summands(args: Any, kwargs: Any, sign: float = 1.0) -> list[tuple[Any, float]]:
    return [(args[0], 1.0), (args[1], sign * float(kwargs.get("alpha", 1)))]


SUMS: dict[Any, Callable[[Any, Any], list[tuple[Any, float]]]] = {
    aten.add.Tensor: _summands,
    aten.add_.Tensor: _summands,
    aten.sub.Tensor: lambda args, kwargs: _summands(args, kwargs, -1.0),
    aten.sub_.Tensor: lambda args, kwargs: _summands(args, kwargs, -1.0),
}
