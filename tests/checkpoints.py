"""Checkpoints of the lab, opened and forged for the tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from dopaminergic.lab.fleet import Fleet, with_header


def state_in(path: Path) -> dict[str, Any]:
    """The state that a checkpoint holds."""
    body = path.read_bytes().partition(b"\n")[2]
    return torch.load(io.BytesIO(body), weights_only=True)


def write_forged(path: Path, state: Any) -> None:
    """Write a checkpoint whose checksum is right, with any state in it."""
    body = io.BytesIO()
    torch.save(state, body)
    path.write_bytes(with_header(body.getvalue()))


def everything(fleet: Fleet) -> str:
    """All that a refused checkpoint must leave as it is."""
    counted = (
        fleet.steps,
        fleet.evaluated,
        fleet.kept,
        fleet.traced,
        fleet.curve,
        fleet.traces,
        fleet.solved_at,
    )
    return repr((fleet.model.state_dict(), fleet.optimizer.state_dict(), counted))
