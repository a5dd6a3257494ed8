"""Fused operations are evaluated in parts, and torch's flags are put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from optimizers import randn


def flags() -> tuple[Any, ...]:
    """All that torch knows of fused operations."""
    mkldnn: Any = torch._C
    return (
        mkldnn._get_mkldnn_enabled(),
        mkldnn._get_mkldnn_deterministic(),
        mkldnn._get_onednn_allow_tf32(),
        mkldnn._get_fp32_precision_getter("mkldnn", "all"),
        torch.backends.mha.get_fastpath_enabled(),
    )


class Interrupted(Exception):  # noqa: N818
    """Raised by a closure."""


def recurrent(kind: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    net = kind(4, 6, batch_first=True)
    return net, lambda x: net(x)[0]


def encoder(_: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    return net, net


MODULES: dict[str, tuple[Any, Any]] = {
    "LSTM": (recurrent, nn.LSTM),
    "GRU": (recurrent, nn.GRU),
    "transformer": (encoder, None),
}


# Warnings are errors in these tests.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_fused_modules_take_steps_without_a_warning_and_leave_flags_alone(
    rule: Any, name: str, dtype: torch.dtype
) -> None:
    make, kind = MODULES[name]
    net, run = make(kind)
    net.to(dtype)
    x = randn(8, 5, 4, seed=2, dtype=torch.float32).to(dtype)
    target = torch.zeros_like(run(x))
    optimizer = rule(net)
    before = flags()
    for _ in range(3):
        optimizer.step(lambda: squared_error(run(x), target))
        assert flags() == before


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("call", range(1, 7))
def test_flags_are_put_back_after_an_exception_in_any_evaluation(call: int, enabled: bool) -> None:
    net, run = recurrent(nn.LSTM)
    x = randn(8, 5, 4, seed=2, dtype=torch.float32)
    calls: list[bool] = []

    def closure() -> Any:
        values = run(x)
        calls.append(flags()[0])
        if len(calls) == call:
            raise Interrupted
        return squared_error(values, torch.zeros_like(values))

    def steps() -> None:
        optimizer = NodeDopamine(net)
        for _ in range(3):
            optimizer.step(closure)

    state: Any = torch._C
    start = flags()
    try:
        state._set_mkldnn_enabled(enabled)
        before = flags()
        with pytest.raises(Interrupted):
            steps()
        assert flags() == before
    finally:
        state._set_mkldnn_enabled(start[0])
    assert not any(calls)
