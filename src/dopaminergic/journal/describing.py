"""An optimizer as a journal describes it, and whether a journal is of an optimizer like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dopaminergic._version import __version__
from dopaminergic.files import shown
from dopaminergic.journal.format import Codec, JournalError
from dopaminergic.journal.reading import PERTURBATION, Contents, Header, Snapshot
from dopaminergic.journal.tensors import dtype_name
from dopaminergic.journal.texts import to_json
from dopaminergic.weight_optimizer import WeightOptimizer


def parameters(optimizer: WeightOptimizer) -> list[Tensor]:
    """Of all groups, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def sigmas(optimizer: WeightOptimizer) -> list[float]:
    """Of each group."""
    return [float(group["sigma"]) for group in optimizer.param_groups]


def codec(optimizer: WeightOptimizer) -> Codec:
    """For the steps of the optimizer with the groups that it has."""
    return Codec(len(optimizer.param_groups), optimizer.replicas)


def groups(optimizer: WeightOptimizer) -> list[dict[str, Any]]:
    """The parameters of each group.

    Sigmas are kept apart, since they may change at every step.
    """
    found = []
    for group in optimizer.param_groups:
        names = group.get("param_names") or [None] * len(group["params"])
        pairs = zip(names, group["params"], strict=True)
        found.append({"parameters": [_parameter(name, p) for name, p in pairs]})
    return found


def _parameter(name: str | None, p: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(p.shape),
        "dtype": dtype_name(p),
        "trainable": p.requires_grad,
    }


def header(optimizer: WeightOptimizer, weights: str, step: int) -> bytes:
    """A header's payload.

    Args:
        optimizer: as it is now.
        weights: SHA-256 of its weights; "" where they go on from the section before.
        step: number of the section's first step.
    """
    described = zip(sigmas(optimizer), groups(optimizer), strict=True)
    found = Header(
        __version__,
        optimizer.identity()["optimizer"],
        optimizer.settings,
        step,
        [{"sigma": sigma, **group} for sigma, group in described],
        weights,
        {
            name: getattr(optimizer.weights, name)
            for name in PERTURBATION
            if hasattr(optimizer.weights, name)
        },
    )
    return to_json(found._asdict())


def snapshot(optimizer: WeightOptimizer, weights: str) -> bytes:
    """A snapshot's payload: the digest of the weights, and the optimizer's state without them."""
    state = optimizer.state_dict()
    own = [
        {k: v for k, v in group.items() if k not in ("params", "param_names")}
        for group in state["param_groups"]
    ]
    forward = {name: state["forward"][name] for name in ("rule", "progress", "batched")}
    return bytes.fromhex(weights) + to_json({"groups": own, **forward})


def check_same(optimizer: WeightOptimizer, path: Path, theirs: Header) -> None:
    """Raise unless a journal is of such an optimizer, over parameters of the same shapes."""
    own = optimizer.identity()
    recorded = {
        "optimizer": theirs.optimizer,
        "shapes": [p["shape"] for p in theirs.parameters],
        "dtypes": ["torch." + p["dtype"] for p in theirs.parameters],
    }
    for name, value in recorded.items():
        if own[name] != value:
            said = shown(str(value), 60)
            mine = shown(str(own[name]), 60)
            raise JournalError(
                f"{path} is the journal of another {name.removesuffix('s')}: it has {said}, the "
                f"optimizer {mine}; build the same model and optimizer first"
            )


def state_at(optimizer: WeightOptimizer, contents: Contents, at: Snapshot) -> dict[str, Any]:
    """The state at a snapshot, in the form that `load_state_dict` takes.

    It is one that `load_state_dict` would not refuse.
    """
    path = contents.path
    saved = contents.state(at)
    state = optimizer.state_dict()
    own = state["param_groups"]
    try:
        theirs = saved.pop("groups")
        if len(theirs) != len(own):
            raise JournalError(
                f"{path} has {len(theirs)} parameter groups, the optimizer {len(own)}; "
                "make the same groups"
            )
        state["param_groups"] = [
            {**o, **g, "params": o["params"]} for o, g in zip(own, theirs, strict=True)
        ]
        state["forward"].update(saved, settings=at.header.settings)
        optimizer.check_state_dict(state)
    except JournalError:
        raise
    except (KeyError, TypeError) as error:
        raise JournalError(f"{path}: the snapshot at byte {at.start} lacks {error}") from None
    except ValueError as error:
        said = shown(str(error), 220)
        raise JournalError(f"{path}: of the snapshot at byte {at.start}, {said}") from error
    return state
