"""Handwritten digits once more, by a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dopaminergic.lab.convolution import Convolutional
from dopaminergic.lab.networks import Seeds
from dopaminergic.lab.tasks.digits import DigitImages
from dopaminergic.lab.tasks.task import counted


class ConvolutionalDigits(DigitImages):
    """Classify digits by two convolutions and two dense layers, 21,738 weights.

    There are 1,297 images to train on and 500 to test.

    Args:
        channels: of each of the two convolutions.
        units: of the hidden dense layer.
        batch_size: images in a batch, drawn with replacement.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (16, 32),
        units: int = 96,
        batch_size: int = 128,
        dtype: str = "float32",
    ) -> None:
        if isinstance(channels, str) or not isinstance(channels, Sequence) or len(channels) != 2:
            raise ValueError(
                f"channels: expected two whole numbers, such as [16, 32], got {channels!r:.40}"
            )
        for count in channels:
            counted("channels", count)
        counted("units", units)
        counted("batch_size", batch_size)
        settings: dict[str, Any] = {
            "channels": list(channels),
            "units": units,
            "batch_size": batch_size,
        }
        title = "handwritten digits, convolutional"
        self._define("digits-conv", title, 30_000, 250, settings | {"dtype": dtype})
        self._load(batch_size)

    def build(self, seeds: Seeds) -> Convolutional:  # noqa: D102
        return Convolutional(
            self.settings["channels"], self.settings["units"], seeds=seeds, dtype=self.dtype
        )
