"""A convolutional network for small images, one model or R replicas.

The replicas are like those of `dopaminergic.lab.networks`. A convolution is a matrix product with
patches of its input (Chellapilla, Puri and Simard 2006). Replicas that see the same images share
the patches of them. Every layer is one batched product for all replicas, also under
`torch.func.vmap`, and no patch overlaps the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dopaminergic.lab.networks import Seeds, Stackable, whole

SIDE = 8
# Kernels 3 and 4 with strides 1 and 2 make 6 x 6 and then 2 x 2 positions of 8 x 8 pixels. A stride
# takes the place of pooling (Springenberg et al. 2015).
KERNELS = (3, 4)
STRIDES = (1, 2)
POSITIONS = (36, 4)

# Larger pieces of the patches of 128 replicas exceed the memory that the allocator keeps. They are
# paged in anew in every pass.
IMAGES_AT_ONCE = 32


def patches(images: Tensor, kernel: int, stride: int) -> Tensor:
    """Every square patch of every image.

    Args:
        images: shape `(..., height, width, channels)`.
        kernel: side of a patch in pixels.
        stride: pixels from one patch to the next.

    Returns:
        Shape `(..., positions, kernel² channels)`, in the order of row, column, channel.

    >>> patches(torch.arange(9.0).view(3, 3, 1), 2, 1)[1]
    tensor([1., 2., 4., 5.])
    """
    windows = images.unfold(-3, kernel, stride).unfold(-3, kernel, stride)
    return windows.movedim(-3, -1).flatten(-3).flatten(-3, -2)


class Convolutional(Stackable):
    """Two convolutions and two dense layers, for images of 8 x 8 pixels.

    They have ReLU between them and a linear output.

    Layer i has the parameters `bias_i` and `weight_i`, with one more leading dimension R in a
    stacked network. The weights have the shapes `(9, channels[0])`, `(16 channels[0],
    channels[1])`, `(4 channels[1], units)` and `(units, classes)`. Rows of the first two are
    ordered like `patches`. Initial weights are normal with variance 2/fan_in (He et al. 2015),
    those of the output layer 1/fan_in; biases are 0.

    Args:
        channels: of the two convolutions, each at least 1.
        units: of the hidden dense layer, at least 1.
        classes: numbers out, at least 1.
        seeds: seed of the initial weights; a sequence of R seeds makes a stacked network.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or not two channels.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        units: int = 96,
        classes: int = 10,
        *,
        seeds: Seeds = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if len(channels) != 2:
            raise ValueError(
                f"channels: expected two numbers, one for each convolution, got {list(channels)}"
            )
        self.channels = whole("channels", channels[0]), whole("channels", channels[1])
        self.units = whole("units", units)
        self.classes = whole("classes", classes)
        fans_in = (
            KERNELS[0] ** 2,
            KERNELS[1] ** 2 * channels[0],
            POSITIONS[1] * channels[1],
            units,
        )
        shapes: dict[str, tuple[tuple[int, ...], float]] = {}
        for i, (fan_in, fan_out) in enumerate(
            zip(fans_in, (*channels, units, classes), strict=True)
        ):
            shapes[f"weight_{i}"] = ((fan_in, fan_out), math.sqrt((1 if i == 3 else 2) / fan_in))
            shapes[f"bias_{i}"] = ((fan_out,), 0.0)
        self._set_parameters(seeds, shapes, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs before any output activation.

        Args:
            inputs: pixels row by row, shape `(B, 64)`; a stacked network also takes `(R, B, 64)`.

        Returns:
            Shape `(B, classes)`, or `(R, B, classes)` for a stacked network.
        """
        self._check_input(inputs, 2, SIDE * SIDE)
        seen = patches(inputs.unflatten(-1, (SIDE, SIDE, 1)), KERNELS[0], STRIDES[0])
        seen = seen.expand(self.replicas or 1, *seen.shape[-3:])
        if self.as_written:
            logits = self._logits(seen)
        else:
            logits = torch.cat([self._logits(piece) for piece in seen.split(IMAGES_AT_ONCE, 1)], 1)
        return logits[0] if self.replicas is None else logits

    def _logits(self, seen: Tensor) -> Tensor:
        """Outputs `(R, b, classes)` for the patches of some images, `(R, b, positions, 9)`."""
        replicas, images = seen.shape[:2]
        h = self._layer(0, seen.flatten(1, 2)).relu()
        h = patches(h.view(replicas, images, 6, 6, self.channels[0]), KERNELS[1], STRIDES[1])
        h = self._layer(1, h.flatten(1, 2)).relu()
        h = self._layer(2, h.view(replicas, images, POSITIONS[1] * self.channels[1])).relu()
        return self._layer(3, h)

    def _layer(self, i: int, h: Tensor) -> Tensor:
        return torch.baddbmm(self._stacked(f"bias_{i}")[:, None], h, self._stacked(f"weight_{i}"))


class Convolutional1d(Stackable):
    """Three convolutions and a dense layer, for sequences of numbers.

    They have ReLU after each convolution and a linear output. Kernels of 5, 3 and 3 numbers move by
    two. Layer i has the parameters `bias_i` and `weight_i`, with one more leading dimension R in a
    stacked network. Rows of a convolution's weights are ordered by place, then channel. Initial
    weights are those of `Convolutional`.

    Args:
        length: of a sequence, at least 19.
        channels: of each convolution, at least 1.
        classes: numbers out, at least 1.
        seeds: seed of the initial weights; a sequence of R seeds makes a stacked network.
        dtype: of the parameters.

    Raises:
        ValueError: a size below its least.
    """

    kernels = (5, 3, 3)

    def __init__(
        self,
        length: int,
        channels: int = 25,
        classes: int = 10,
        *,
        seeds: Seeds = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.length = whole("length", length)
        if length < 19:
            raise ValueError(f"length: expected at least 19, got {length}; pad the sequences")
        self.channels = whole("channels", channels)
        self.classes = whole("classes", classes)
        places = length
        for kernel in self.kernels:
            places = (places - kernel) // 2 + 1
        fans_in = (self.kernels[0], *(kernel * channels for kernel in self.kernels[1:]))
        sizes = [*((fan, channels, 2) for fan in fans_in), (places * channels, classes, 1)]
        shapes: dict[str, tuple[tuple[int, ...], float]] = {}
        for i, (fan_in, fan_out, gain) in enumerate(sizes):
            shapes[f"weight_{i}"] = ((fan_in, fan_out), math.sqrt(gain / fan_in))
            shapes[f"bias_{i}"] = ((fan_out,), 0.0)
        self._set_parameters(seeds, shapes, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs before any output activation.

        Args:
            inputs: shape `(B, length)`; a stacked network also takes `(R, B, length)`.

        Returns:
            Shape `(B, classes)`, or `(R, B, classes)` for a stacked network.
        """
        h = self._stacked_input(inputs, 2, self.length)[..., None]
        replicas, batch = h.shape[:2]
        for i, kernel in enumerate(self.kernels):
            seen = h.unfold(2, kernel, 2).mT.flatten(3)
            h = self._layer(i, seen.flatten(1, 2)).relu()
            h = h.view(replicas, batch, -1, self.channels)
        logits = self._layer(len(self.kernels), h.flatten(2))
        return logits[0] if self.replicas is None else logits

    def _layer(self, i: int, h: Tensor) -> Tensor:
        return torch.baddbmm(self._stacked(f"bias_{i}")[:, None], h, self._stacked(f"weight_{i}"))
