"""Other tensors in the place of parameters, torch's stack of modes, and its random numbers.

These serve every evaluation in which torch operations are given other tensors than the closure
names. For example, `exchanged((x, weight), table)` are the arguments of a product with perturbed
weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Generators of torch, each with a state of it.
RandomStates = list[tuple[torch.Generator, Tensor]]

_modes: Any = torch._C


def exchanged(argument: Any, table: dict[int, Tensor]) -> Any:
    """The argument of a torch operation, with tensors of the table in place of its own.

    The table has them by the `id` of those that they replace.
    """
    if isinstance(argument, list | tuple) and not isinstance(argument, torch.Size):
        return type(argument)([exchanged(a, table) for a in argument])
    return table.get(id(argument), argument)


def leave_modes(depth: int | None) -> None:
    """Bring torch's stack of modes back to a depth.

    It is deeper where Ctrl-C came while torch entered or left a mode.
    """
    while depth is not None and _modes._len_torch_function_stack() > depth:
        _modes._pop_torch_function_stack()


def random_states(generators: Iterable[torch.Generator]) -> RandomStates:
    """The state of each generator now."""
    return [(generator, generator.get_state()) for generator in generators]


def rewind(states: RandomStates) -> None:
    """Let every generator go on from a state again, for common random numbers."""
    for generator, state in states:
        generator.set_state(state)
