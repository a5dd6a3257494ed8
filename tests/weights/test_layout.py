"""Which parameters go which way, and whether anything about them has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dopaminergic.weights.layout import COPIED, IN_PLACE, ON_USE, Layout, Look, arrange

SEEDS = np.array([1], np.uint64)
LARGE = 300_000


def parameter(count: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros(count, dtype=dtype))


def arranged(*parameters: Tensor, keep_copies: bool = False, on_use: bool = True) -> Layout:
    groups = [{"params": list(parameters), "sigma": 0.1}]
    return arrange(groups, SEEDS, "rademacher", keep_copies=keep_copies, on_use=on_use)


def ways(layout: Layout) -> dict[str, int]:
    """How many parameters go each way."""
    return {
        way: sum(len(part.owners) for part in parts) for way, parts in layout.parts.items() if parts
    }


def test_small_models_are_copied() -> None:
    layout = arranged(parameter(5, torch.float32), parameter(7, torch.bfloat16))
    assert ways(layout) == {COPIED: 2}
    assert layout.exact
    assert layout.sizes == [12]
    assert layout.bytes == 5 * 4 + 7 * 2


def test_large_models_go_in_place_or_on_use_by_their_dtype() -> None:
    layout = arranged(
        parameter(LARGE, torch.float32), parameter(7, torch.float64), parameter(9, torch.float16)
    )
    assert ways(layout) == {IN_PLACE: 2, ON_USE: 1}
    assert not layout.exact


def test_weights_of_16_bits_that_a_closure_refuses_on_use_are_copied() -> None:
    wide = parameter(2 * LARGE, torch.bfloat16)
    assert ways(arranged(wide)) == {ON_USE: 1}
    assert ways(arranged(wide, on_use=False)) == {COPIED: 1}
    assert arranged(wide).exact


def test_a_16_bit_parameter_whose_layout_torch_cannot_make_again_is_copied() -> None:
    with_gaps = nn.Parameter(torch.zeros(LARGE, 4, dtype=torch.bfloat16)[:, ::2])
    assert ways(arranged(with_gaps)) == {COPIED: 1}


def test_copies_may_be_kept_of_any_model() -> None:
    assert ways(arranged(parameter(LARGE, torch.float32), keep_copies=True)) == {COPIED: 1}


def test_a_frozen_parameter_leaves_the_others_their_index_in_the_noise() -> None:
    parameters = [parameter(3, torch.float32) for _ in range(3)]
    parameters[1].requires_grad_(False)
    (block,) = arranged(*parameters).blocks
    assert block.indices == [0, 2]


# ---- looks ---------------------------------------------------------------------------------------


def freeze(group: dict[str, Any]) -> None:
    group["params"][0].requires_grad_(False)


def cast(group: dict[str, Any]) -> None:
    group["params"][0].data = group["params"][0].data.double()


def rebind(group: dict[str, Any]) -> None:
    group["params"][0].data = group["params"][0].data.clone()


def transpose(group: dict[str, Any]) -> None:
    group["params"][0].data = group["params"][0].data.t()


def replace(group: dict[str, Any]) -> None:
    group["params"][0] = parameter(5, torch.float32)


def add(group: dict[str, Any]) -> None:
    group["params"].append(parameter(5, torch.float32))


def choose_sigma(group: dict[str, Any]) -> None:
    group["sigma"] = 0.2


@pytest.mark.parametrize("change", [freeze, cast, rebind, transpose, replace, add, choose_sigma])
def test_a_look_sees_all_that_users_change(change: Callable[[dict[str, Any]], None]) -> None:
    group: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(4, 5))], "sigma": 0.1}
    look = Look([group], sharded=False, alone=True)
    assert look.is_same()
    assert look.is_same_at_a_glance()
    change(group)
    assert not look.is_same()
    assert not look.is_same_at_a_glance()


def test_weights_that_change_their_values_are_the_same() -> None:
    group = {"params": [parameter(5, torch.float32)], "sigma": 0.1}
    look = Look([group], sharded=False, alone=True)
    group["params"][0].data.fill_(3.0)
    assert look.is_same()
    assert look.is_same_at_a_glance()


def test_a_glance_tells_nothing_of_several_groups_or_16_bits() -> None:
    groups: list[dict[str, Any]] = [{"params": [parameter(5, torch.float32)], "sigma": 0.1}]
    look = Look(groups, sharded=False, alone=True)
    groups.append({"params": [parameter(5, torch.float32)], "sigma": 0.1})
    assert not look.is_same_at_a_glance()
    halves = [{"params": [parameter(5, torch.bfloat16)], "sigma": 0.1}]
    look = Look(halves, sharded=False, alone=True)
    assert look.is_same()
    assert not look.is_same_at_a_glance()
