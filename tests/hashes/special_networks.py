"""Networks of special situations: other types, torch modules that write while they compute, more
weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .networks import WIDTH, Network, numbers, total, wide

MEBIBYTE = 1 << 20


class MixedNetwork(Network):
    """The layers have different types; the first is the one that is asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        others = [t for t in (torch.float32, torch.bfloat16, torch.float64) if t != dtype]
        for name, other in zip(("bias", "last"), others, strict=False):
            self.parameters[name] = nn.Parameter(self.parameters[name].detach().to(other))


class ModuleNetwork(Network):
    """Inputs come from a torch module, whose parameters are trained too."""

    def __init__(self, dtype: torch.dtype, module: nn.Module) -> None:
        super().__init__(dtype)
        self.dtype = dtype
        self.module = module.to(dtype)
        for i, (name, p) in enumerate(module.named_parameters()):
            p.data.copy_(0.5 + numbers(*p.shape, seed=11 + i))
            self.parameters[name] = p


class NormalizedNetwork(ModuleNetwork):
    """A BatchNorm, which writes to its buffers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype, nn.BatchNorm1d(WIDTH))

    def inputs(self) -> Tensor:
        return wide(self.module(super().inputs().to(self.dtype)))


class EmbeddedNetwork(ModuleNetwork):
    """An embedding, which shortens its rows when they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype, nn.Embedding(6, WIDTH, max_norm=1.5))

    def inputs(self) -> Tensor:
        return wide(self.module(torch.tensor([0, 1, 3, 5]) // (1 + self.step % 2)))


class WideNetwork(Network):
    """Just above the size from which on the library takes a model for large, without a knob."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.parameters["many"] = nn.Parameter(
            numbers(MEBIBYTE // dtype.itemsize, seed=21).to(dtype)
        )

    def predictions(self) -> Tensor:
        many = wide(self.parameters["many"]).reshape(4, -1)
        return super().predictions() + total(many) / many.shape[-1]


class CastNetwork(Network):
    """A closure that computes in bfloat16; products of one number each, which have no order of
    sums.
    """

    def inputs(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            bias = self.parameters["bias"]
            outer = bias.unsqueeze(1) @ bias.unsqueeze(0)
        return super().inputs() + outer[:4].double()
