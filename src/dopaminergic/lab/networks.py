"""Networks of the experiments, each one model or R independent replicas evaluated as one batch.

A stacked network is the plain one with a leading dimension R on every parameter: slice r of it is
the replica of seed r. A plain network computes as a stack of one, so both run the same operations
in the same order. Everything is differentiable, so that backpropagation (through time) trains the
very same models.
tanh is written as 2 sigmoid(2 a) - 1 throughout: the same function, with a sigmoid that is several
times faster than tanh on CPUs. In `Recurrent` the tanh cell carries s = sigmoid(2 a) instead of h =
2 s - 1. The factor and the offset are folded into the weights. That leaves one matrix product and
one sigmoid for each time step:

    a_t = x_t Wx + b + h_{t-1} Wh,   h = 2 s - 1   =>   2 a_t = 2 (x_t Wx + b - 1 Wh) + 4 s_{t-1} Wh
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Seeds = int | Sequence[int]
State = tuple[Tensor, ...]

GATES = {"tanh": 1, "gru": 3, "lstm": 4}


def tanh(a: Tensor) -> Tensor:
    """The hyperbolic tangent, through the faster sigmoid; absolute error within 2 ulp of 1."""
    return 2.0 * torch.sigmoid(2.0 * a) - 1.0


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
}


class Stackable(nn.Module):
    """A network whose parameters may carry one leading dimension of replicas.

    Attributes:
        replicas: the number of replicas R, or None for a plain network.
        as_written: whether the network computes by its equations as they are written, all samples
            at once, which rules that perturb activities need; else by faster forms of them. The
            results are the same but for rounding.
    """

    replicas: int | None
    as_written: bool = False

    def _set_parameters(
        self, seeds: Seeds, shapes: dict[str, tuple[tuple[int, ...], float]], dtype: torch.dtype
    ) -> None:
        """Registers normal parameters, drawn in order from each seed's generator.

        Each is name -> (shape, standard deviation).

        Args:
            seeds: one seed for a plain network, a sequence of them for a stacked one.
            shapes: a standard deviation of 0 gives zeros and draws nothing.
            dtype: of the parameters; numbers are drawn in float32, so that it does not change them.
        """

        def draw(seed: int) -> list[Tensor]:
            generator = torch.Generator().manual_seed(int(seed))
            return [
                torch.randn(shape, generator=generator) * deviation
                if deviation
                else torch.zeros(shape)
                for shape, deviation in shapes.values()
            ]

        self.replicas = None if isinstance(seeds, int) else len(seeds)
        if isinstance(seeds, int):
            values = draw(seeds)
        elif len(seeds) == 0:
            raise ValueError(
                "seeds: an empty sequence; give one seed for each replica, or an int for a plain "
                "network"
            )
        else:
            values = [
                torch.stack(slices) for slices in zip(*(draw(seed) for seed in seeds), strict=True)
            ]
        for name, value in zip(shapes, values, strict=True):
            self.register_parameter(name, nn.Parameter(value.to(dtype)))

    def _stacked(self, name: str) -> Tensor:
        """The parameter with a leading dimension, of size 1 in a plain network."""
        value = getattr(self, name)
        return value[None] if self.replicas is None else value

    def _check_input(self, inputs: Tensor, ndim: int, features: int) -> None:
        """Raises ValueError unless the inputs have a shape that fits.

        They have `ndim` dimensions, the last of size `features`, or R before them.
        """
        allowed = (ndim,) if self.replicas is None else (ndim, ndim + 1)
        fits = inputs.ndim in allowed and inputs.shape[-1] == features
        if not fits or (inputs.ndim > ndim and inputs.shape[0] != self.replicas):
            batch = "(B, T" if ndim == 3 else "(B"
            stack = (
                "" if self.replicas is None else f" or ({self.replicas}, {batch[1:]}, {features})"
            )
            raise ValueError(
                f"inputs: expected shape {batch}, {features}){stack}, got {tuple(inputs.shape)}; "
                "reshape the batch"
            )

    def _stacked_input(self, inputs: Tensor, ndim: int, features: int) -> Tensor:
        """The inputs with a leading dimension R.

        They are expanded, not copied, when the replicas share them.
        """
        self._check_input(inputs, ndim, features)
        return inputs if inputs.ndim > ndim else inputs.expand(self.replicas or 1, *inputs.shape)


def whole(name: str, value: int) -> int:
    """The value, if it is a whole number of at least 1; else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return value


class Perceptron(Stackable):
    """A multi-layer perceptron with a linear output layer.

    Parameters are `weight_i` of shape `(fan_in, fan_out)` and `bias_i` of shape `(fan_out,)` for
    layer i, all with one more leading dimension R in a stacked network. Initial biases are 0.

    Args:
        sizes: units of each layer, inputs first, outputs last; at least two numbers.
        hidden: activation of the hidden layers, `"tanh"`, `"relu"`, `"sigmoid"` or `"sign"`.
        seeds: seed of the initial weights; a sequence of R seeds makes a stacked network.
        deviations: standard deviation of the normal initial weights of each layer; None:
            1/sqrt(fan_in).
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, an unknown activation, or not as many deviations as layers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        hidden: str = "tanh",
        seeds: Seeds = 0,
        deviations: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(
                f"sizes: expected at least an input and an output size, got {list(sizes)}"
            )
        if hidden not in ACTIVATIONS:
            raise ValueError(f"hidden: expected one of {', '.join(ACTIVATIONS)}, got {hidden!r}")
        self.sizes = tuple(whole("sizes", size) for size in sizes)
        self.hidden = hidden
        spread = (
            [1 / math.sqrt(size) for size in self.sizes[:-1]]
            if deviations is None
            else list(deviations)
        )
        if len(spread) != len(self.sizes) - 1:
            raise ValueError(
                f"deviations: expected {len(self.sizes) - 1} numbers, one a layer, got "
                f"{len(spread)}"
            )
        shapes: dict[str, tuple[tuple[int, ...], float]] = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes[f"weight_{i}"] = ((fan_in, fan_out), spread[i])
            shapes[f"bias_{i}"] = ((fan_out,), 0.0)
        self._set_parameters(seeds, shapes, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs before any output activation.

        Args:
            inputs: shape `(B, sizes[0])`; a stacked network also takes `(R, B, sizes[0])`.

        Returns:
            Shape `(B, sizes[-1])`, or `(R, B, sizes[-1])` for a stacked network.
        """
        h = self._stacked_input(inputs, 2, self.sizes[0])
        last = len(self.sizes) - 2
        activate = ACTIVATIONS[self.hidden]
        for i in range(last + 1):
            h = torch.baddbmm(self._stacked(f"bias_{i}")[:, None], h, self._stacked(f"weight_{i}"))
            if i < last:
                h = h.tanh() if self.as_written and self.hidden == "tanh" else activate(h)
        return h[0] if self.replicas is None else h


class Recurrent(Stackable):
    """A recurrent layer with a linear readout, applied to whole sequences.

    The parameters have one more leading dimension R in a stacked network; G is 1, 3 or 4 gates.
    They are `input_weight` `(inputs, G hidden)`, `recurrent_weight` `(hidden, G hidden)`, `bias`
    `(G hidden,)`, `output_weight` `(hidden, outputs)` and `output_bias` `(outputs,)`. A GRU also
    has `candidate_bias` `(hidden,)`, added to the recurrent part of its candidate. Gates lie in the
    order of `torch.nn`: reset, update, candidate; input, forget, cell, output.

    Initial weights are normal: variance 1/inputs (input), gain²/hidden (recurrent), 1/hidden
    (readout); biases are 0.

    Args:
        inputs: numbers per time step in, at least 1.
        hidden: units, at least 1.
        outputs: numbers per time step out, at least 1.
        cell: `"tanh"` (Elman 1990), `"gru"` (Cho et al. 2014) or `"lstm"` (Hochreiter and
            Schmidhuber 1997).
        seeds: seed of the initial weights; a sequence of R seeds makes a stacked network.
        gain: spectral scale of the initial recurrent weights.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1 or an unknown cell.
    """

    input_weight: nn.Parameter
    recurrent_weight: nn.Parameter
    bias: nn.Parameter
    candidate_bias: nn.Parameter
    output_weight: nn.Parameter
    output_bias: nn.Parameter

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        cell: str = "tanh",
        seeds: Seeds = 0,
        gain: float = 0.8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if cell not in GATES:
            raise ValueError(f"cell: expected one of {', '.join(GATES)}, got {cell!r}")
        self.inputs = whole("inputs", inputs)
        self.hidden = whole("hidden", hidden)
        self.outputs = outputs
        self.outputs = whole("outputs", outputs)
        self.cell = cell
        width = GATES[cell] * hidden
        shapes: dict[str, tuple[tuple[int, ...], float]] = {
            "input_weight": ((inputs, width), 1 / math.sqrt(inputs)),
            "recurrent_weight": ((hidden, width), gain / math.sqrt(hidden)),
            "bias": ((width,), 0.0),
        }
        if cell == "gru":
            shapes["candidate_bias"] = ((hidden,), 0.0)
        shapes["output_weight"] = ((hidden, outputs), 1 / math.sqrt(hidden))
        shapes["output_bias"] = ((outputs,), 0.0)
        self._set_parameters(seeds, shapes, dtype)

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The outputs of every time step, and the state after the last.

        Args:
            inputs: shape `(B, T, inputs)`; a stacked network also takes `(R, B, T, inputs)`.
            state: of an earlier call; None for zeros.

        Returns:
            The outputs, shape `(B, T, outputs)` or `(R, B, T, outputs)`, and the state: `(h,)`, for
            an LSTM `(h, c)`, each of shape `(B, hidden)` or `(R, B, hidden)`.
        """
        x = self._stacked_input(inputs, 3, self.inputs)
        replicas, batch, steps, _ = x.shape
        if self.as_written:
            return self._forward_as_written(x, state)
        # Time before batch, so that all time steps are projected by one product and read out by
        # another.
        flat = x.transpose(1, 2).reshape(replicas, steps * batch, self.inputs)
        now = self._start(state, replicas, batch, flat)
        run = {"tanh": self._tanh_cell, "gru": self._gru_cell, "lstm": self._lstm_cell}[self.cell]
        weight, bias = self._readout()
        read = []
        for part in flat.split(self._steps_at_once(replicas * batch) * batch, 1):
            states, now = run(part, now)
            read.append(torch.baddbmm(bias, weight, states.mT))
        out = torch.cat(read, -1).view(replicas, self.outputs, steps, batch).permute(0, 3, 2, 1)
        final = (2.0 * now[0] - 1.0,) if self.cell == "tanh" else now
        return (
            (out[0], tuple(value[0] for value in final)) if self.replicas is None else (out, final)
        )

    def _forward_as_written(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The same outputs and state, by the equations of the cell."""
        replicas, batch, steps, _ = x.shape
        flat = x.transpose(1, 2).reshape(replicas, steps * batch, self.inputs)
        now = self._start(state, replicas, batch, flat)
        if self.cell == "tanh":
            now = (2.0 * now[0] - 1.0,)
        run = {"tanh": self._elman_cell, "gru": self._gru_cell, "lstm": self._lstm_cell}[self.cell]
        states, now = run(flat, now)
        bias = self._stacked("output_bias")[:, None]
        out = torch.baddbmm(bias, states, self._stacked("output_weight"))
        out = out.view(replicas, steps, batch, self.outputs).transpose(1, 2)
        return (out[0], tuple(part[0] for part in now)) if self.replicas is None else (out, now)

    def _steps_at_once(self, sequences: int) -> int:
        # Pieces of two megabytes stay in the cache.
        return max(4, (1 << 19) // (sequences * self.hidden * GATES[self.cell]))

    def _readout(self) -> tuple[Tensor, Tensor]:
        """Weights and bias that read the carried states.

        They have the shapes `(R, outputs, hidden)` and `(R, outputs, 1)`.
        """
        weight = self._stacked("output_weight")
        bias = self._stacked("output_bias")
        if self.cell == "tanh":  # h Wo + bo = s (2 Wo) + (bo - 1 Wo)
            weight, bias = 2.0 * weight, bias - weight.sum(-2)
        # The product of transposes: with few outputs it is about three times as fast as states @
        # weight.
        return weight.mT.contiguous(), bias[:, :, None]

    def _start(self, state: State | None, replicas: int, batch: int, like: Tensor) -> State:
        parts = 2 if self.cell == "lstm" else 1
        if state is None:
            start = tuple(like.new_zeros(replicas, batch, self.hidden) for _ in range(parts))
        elif len(state) != parts:
            raise ValueError(
                f"state: a {self.cell} cell has {parts} part(s), got {len(state)}; pass on what it "
                "returned"
            )
        else:
            start = tuple(part[None] if self.replicas is None else part for part in state)
        return (0.5 * start[0] + 0.5,) if self.cell == "tanh" else start

    # Each cell maps the inputs of some time steps, `(R, steps B, inputs)`, and the carried state
    # before them to the states that are read out, `(R, steps B, hidden)`, and the carried state
    # after them.

    def _tanh_cell(self, flat: Tensor, carried: State) -> tuple[Tensor, State]:
        (s,) = carried
        wh = self._stacked("recurrent_weight")
        offset = 2.0 * (self._stacked("bias") - wh.sum(-2))
        drive = torch.baddbmm(offset[:, None], flat, 2.0 * self._stacked("input_weight"))
        states = []
        for a in drive.split(s.shape[1], 1):
            s = torch.baddbmm(a, s, wh, alpha=4.0).sigmoid_()
            states.append(s)
        return torch.cat(states, 1), (s,)

    def _elman_cell(self, flat: Tensor, carried: State) -> tuple[Tensor, State]:
        (h,) = carried
        drive = torch.baddbmm(self._stacked("bias")[:, None], flat, self._stacked("input_weight"))
        states = []
        for a in drive.split(h.shape[1], 1):
            h = torch.baddbmm(a, h, self._stacked("recurrent_weight")).tanh()
            states.append(h)
        return torch.cat(states, 1), (h,)

    def _gru_cell(self, flat: Tensor, carried: State) -> tuple[Tensor, State]:
        (h,) = carried
        n = self.hidden
        drive = torch.baddbmm(self._stacked("bias")[:, None], flat, self._stacked("input_weight"))
        wh = self._stacked("recurrent_weight")
        bias = self._stacked("candidate_bias")[:, None]
        states = []
        for a in drive.split(h.shape[1], 1):
            b = torch.bmm(h, wh)
            reset, update = torch.sigmoid(a[..., : 2 * n] + b[..., : 2 * n]).chunk(2, -1)
            candidate = tanh(a[..., 2 * n :] + reset * (b[..., 2 * n :] + bias))
            h = candidate + update * (h - candidate)
            states.append(h)
        return torch.cat(states, 1), (h,)

    def _lstm_cell(self, flat: Tensor, carried: State) -> tuple[Tensor, State]:
        (h, c) = carried
        wh = self._stacked("recurrent_weight")
        drive = torch.baddbmm(self._stacked("bias")[:, None], flat, self._stacked("input_weight"))
        states = []
        for a in drive.split(h.shape[1], 1):
            enter, forget, cell, leave = torch.baddbmm(a, h, wh).chunk(4, -1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * tanh(cell)
            h = torch.sigmoid(leave) * tanh(c)
            states.append(h)
        return torch.cat(states, 1), (h, c)
