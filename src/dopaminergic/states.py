"""Reads a saved state: all that the constructor takes, and numbers that a rule could have come to.

A state may come from a file that somebody else made, or that was damaged. It is read as a whole
before anything of the optimizer changes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.plain import as_float, brief, number_of, plain

# Steps are numbered by 32 bits, and a run should get some way from here.
LAST_STEP = (1 << 32) - (1 << 20)
OLDER = ("batched", "on_use")  # parts that states of earlier versions lack
# Wrappers put these before names of parameters.
PREFIXES = ("module", "_orig_mod", "_fsdp_wrapped_module")

Bounds = dict[str, tuple[float, float]]
_SIZE = (0.0, math.inf)
_SHARE = (0.0, 1.0 + 1e-9)
_DOUBT = (1.0 - 1e-9, math.inf)

# The ranges of a rule's state besides finite, by the name of its class.
BOUNDS: dict[str, Bounds] = {
    "DopamineState": {"root": _SIZE, "size": _SIZE, "trials": _SHARE, "doubt": _DOUBT},
    "Dopamine2State": {
        "root": _SIZE,
        "size": _SIZE,
        "trials": _SHARE,
        "doubt": _DOUBT,
        "actual": _SIZE,
        "promised": _SIZE,
        "comparisons": _SHARE,
        "expected": _SIZE,
        "gain": (1e-3, 1e3),
    },
    "VectorState": {
        "damping": (1e-300, math.inf),
        "gain": _SHARE,
        "curvature": _SIZE,
        "actual": _SIZE,
        "promised": _SIZE,
        "comparisons": _SHARE,
        "expected": _SIZE,
        "gap": _SIZE,
        "reach": (1.0, 2.0**17),
    },
}
# Times its root mean square, that a mean regret may be; once at most, but for how a rule weighs
# outliers.
UNEVEN = 10.0


class Own(NamedTuple):
    """The parts of the optimizer that is to load a state.

    Attributes:
        rule: its name.
        forward: its own state, the part that torch does not know.
        groups: its parameter groups.
        start: the rule's state before the first step; None for a rule without one.
        replicas: R of a fleet; None for one model.
    """

    rule: str
    forward: dict[str, Any]
    groups: list[dict[str, Any]]
    start: Any
    replicas: int | None


class Loaded(NamedTuple):
    """A state that may be used; all of it in plain form, and nobody else's.

    Attributes:
        groups: the `param_groups` for torch to load.
        settings: of the rule.
        rule: its numbers, floats or float64 tensors; None for a rule without a state.
        progress: the other fields of `Progress`.
        batched: flags.
        on_use: flags.
    """

    groups: list[dict[str, Any]]
    settings: dict[str, Any]
    rule: list[Any] | None
    progress: dict[str, Any]
    batched: dict[str, bool]
    on_use: dict[str, bool]


def read(saved: Any, own: Own) -> Loaded:
    """The state in it; raise unless an optimizer like this one could have saved it.

    Raises:
        ValueError: something is wrong with it.
    """
    try:
        return _read(saved, own)
    except TypeError as error:
        raise ValueError(str(error)) from error
    # Of values that compare like nothing else.
    except (AttributeError, KeyError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{own.rule}.load_state_dict: the state is damaged ({brief(error)}); load another copy"
        ) from error


def _read(saved: Any, own: Own) -> Loaded:
    rule = own.rule
    if not isinstance(saved, dict) or not isinstance(saved.get("forward"), dict):
        has = brief(list(saved)) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(
            f"{rule}: this state_dict does not come from a forward-only optimizer (its keys are "
            f"{has}); pass what "
            f"{rule}.state_dict() returned"
        )
    forward = saved["forward"]
    place = f"{rule}.load_state_dict"
    _same_identity(rule, forward, own.forward)
    _same_keys(place, "the state", forward, own.forward, OLDER)
    own_settings = own.forward["settings"]
    _same_keys(place, "settings", forward["settings"], own_settings)
    settings = checks.settings(place, forward["settings"])
    seed = settings["seed"]
    if isinstance(seed, list) and len(seed) != own.replicas:
        mine = "a single model" if own.replicas is None else f"a fleet of {own.replicas}"
        raise ValueError(
            f"{place}: the state is of a fleet of {len(seed)} seeds, this optimizer of {mine}"
        )
    for name, value in own_settings.items():
        _same_kind(place, f"settings {name}", settings[name], value)
    flags = {name: _flags(place, name, forward.get(name, {}), own.forward[name]) for name in OLDER}
    return Loaded(
        _groups(place, saved, own),
        settings,
        _rule(place, forward["rule"], own),
        _progress(place, forward["progress"], own),
        **flags,
    )


def _refuse(place: str, name: str, wanted: str, value: Any) -> None:
    raise ValueError(
        f"{place}: {name} must be {wanted}, got {brief(value)}; the state is damaged, load another "
        "copy"
    )


def _same_identity(rule: str, forward: dict[str, Any], own: dict[str, Any]) -> None:
    for key, what in (
        ("optimizer", "optimizer"),
        ("shapes", "parameter shapes"),
        ("dtypes", "parameter dtypes"),
    ):
        if key not in forward:
            raise ValueError(
                f"{rule}: the state_dict is damaged, it lacks the {what}; save it again"
            )
        theirs = plain(forward[key])
        if not _equal(theirs, own[key]):
            raise ValueError(
                f"{rule}: the state_dict is of another {what}: it has {_few(theirs)}, this one has "
                f"{_few(own[key])}; build the same model and optimizer first"
            )


def _same_kind(place: str, name: str, value: Any, own: Any) -> None:
    """Refuse a setting of another type than this optimizer's.

    Those of users' own rules are checked by nothing else.
    """
    theirs = number_of(value)
    ours = number_of(own)
    if ours is not None and theirs is not None and math.isfinite(theirs):
        return
    if type(value) is not type(own):
        _refuse(place, name, f"a {type(own).__name__} as this optimizer has it", value)


def _equal(theirs: Any, own: Any) -> bool:
    """Whether a value equals a string, an int, or lists of them.

    The value may be anything, for example a tensor, whose own comparison would give no bool.
    """
    if isinstance(own, list):
        return _is_list(theirs) and len(theirs) == len(own) and all(map(_equal, theirs, own))
    return type(theirs) is type(own) and theirs == own


def _few(value: Any) -> str:
    return brief(value)[:75]


def _same_keys(
    place: str, name: str, theirs: Any, own: dict[str, Any], older: tuple[str, ...] = ()
) -> None:
    if not isinstance(theirs, dict):
        _refuse(place, name, "a dict", theirs)
    for key in own:
        if key not in theirs and key not in older:
            raise ValueError(
                f"{place}: {name} lacks {brief(key)}; it is damaged, load another copy"
            )
    for key in theirs:
        if key not in own:
            raise ValueError(
                f"{place}: {name} has {brief(key)}, which this optimizer does not know"
            )


def _flags(place: str, name: str, flags: Any, own: dict[str, bool]) -> dict[str, bool]:
    if not isinstance(flags, dict) or (flags and flags.keys() != own.keys()):
        _refuse(place, name, f"a dict of {' and '.join(own)}", flags)
    return {key: checks.flag(place, f"{name} {key}", value) for key, value in flags.items()}


# ---- groups --------------------------------------------------------------------------------------


def _groups(place: str, saved: dict[str, Any], own: Own) -> list[dict[str, Any]]:
    """The groups as they are loaded, with numbers in plain form."""
    if not isinstance(saved.get("state"), dict):
        _refuse(place, "state", "a dict", saved.get("state"))
    groups: Any = saved.get("param_groups")
    if not _is_list(groups) or not all(isinstance(group, dict) for group in groups):
        _refuse(place, "param_groups", "a list of dicts", groups)
    theirs = [len(group["params"]) if _is_list(group.get("params")) else None for group in groups]
    ours = [len(group["params"]) for group in own.groups]
    if theirs != ours:
        raise ValueError(
            f"{place}: the state has parameter groups of {brief(theirs)} parameters, this "
            f"optimizer of {brief(ours)}; "
            "make the same groups first"
        )
    numbers = [number for group in groups for number in group["params"]]
    if not all(type(number) is int for number in numbers) or len({*numbers}) != len(numbers):
        _refuse(place, "params", "numbers of parameters, each once", numbers)
    for group in groups:
        names: Any = group.get("param_names", [""] * len(group["params"]))
        right = _is_list(names) and len(names) == len(group["params"])
        if not right or not all(isinstance(name, str) for name in names):
            _refuse(place, "param_names", f"a list of {len(group['params'])} names", names)
    _same_order(place, groups, own.groups)
    return [{**plain(group), **checks.rates(place, group, own.replicas)} for group in groups]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _same_order(place: str, groups: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Refuse parameters in another order.

    Directions go by that order, so a run would go on with other noise.
    """
    for theirs, ours in zip(groups, own, strict=True):
        if "param_names" not in theirs or "param_names" not in ours:
            continue
        for i, (one, other) in enumerate(
            zip(theirs["param_names"], ours["param_names"], strict=True)
        ):
            if _bare(one) != _bare(other):
                raise ValueError(
                    f"{place}: the state is of other parameters, or in another order: number {i} "
                    "of a group is "
                    f"{brief(one)} there and {brief(other)} here; list them in the same order, or "
                    "remove "
                    "'param_names' from the state's groups if only names have changed"
                )


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in PREFIXES)


# ---- progress ------------------------------------------------------------------------------------


def _rule(place: str, numbers: Any, own: Own) -> list[Any] | None:
    """The rule's state: finite, and each number where it may be."""
    start = own.start
    if start is None:
        if numbers is not None:
            _refuse(place, "rule", "None, for this rule has no state", numbers)
        return None
    fields: Any = getattr(start, "_fields", range(len(start)))
    if not _is_list(numbers) or len(numbers) != len(start):
        _refuse(place, "rule", f"a list of {len(start)} numbers", numbers)
    bounds = BOUNDS.get(type(start).__name__, {})
    found = []
    for name, value, first in zip(fields, numbers, start, strict=True):
        low, high = bounds.get(name, (-math.inf, math.inf))
        entry, entries = _entry(
            place, f"rule {name}", value, None if isinstance(first, float) else first.shape
        )
        if not all(math.isfinite(x) and low <= x <= high for x in entries):
            within = "" if (low, high) == (-math.inf, math.inf) else f" in [{low:g}, {high:g}]"
            _refuse(place, f"rule {name}", f"finite{within}", value)
        found.append(entry)
    _even(place, dict(zip(fields, found, strict=True)))
    return found


def _entry(place: str, name: str, value: Any, shape: Any) -> tuple[Any, list[float]]:
    """One number of a rule, a float or a tensor on the CPU, and its entries as a list."""
    if shape is None:
        number = None if isinstance(value, Tensor) and value.ndim else number_of(value)
        if number is None:
            _refuse(place, name, "a number", value)
        return float(number or 0.0), [float(number or 0.0)]
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.dtype != torch.float64
        or value.is_meta
    ):
        _refuse(place, name, f"a float64 tensor of shape {tuple(shape)}", value)
    entry = value.detach().cpu().clone()
    return entry, entry.tolist()


def _even(place: str, rule: dict[Any, Any]) -> None:
    """Refuse a mean of regrets that is larger than their root mean square.

    Weights would be thrown far if the mean were divided by it.
    """
    if not {"regret", "root", "trials"} <= rule.keys():
        return
    regret, root, trials = (
        torch.as_tensor(rule[name], dtype=torch.float64, device="cpu")
        for name in ("regret", "root", "trials")
    )
    if bool((regret.abs() > UNEVEN * root * trials.sqrt() + 1e-150 * trials).any()):
        _refuse(
            place,
            "rule regret",
            "a mean of what rule root is the root mean square of",
            rule["regret"],
        )


def _progress(place: str, progress: Any, own: Own) -> dict[str, Any]:
    """All but the rule's state that changes from step to step."""
    _same_keys(place, "progress", progress, own.forward["progress"])
    found = {name: plain(value) for name, value in progress.items()}
    for name in ("step", "forward_passes"):
        found[name] = _count(place, name, progress[name], LAST_STEP if name == "step" else 1 << 63)
    if own.replicas is None:
        found["skipped_steps"] = _count(
            place, "skipped_steps", progress["skipped_steps"], found["step"] + 1
        )
    else:
        skipped = found["skipped_steps"]
        right = (
            isinstance(skipped, Tensor)
            and skipped.shape == (own.replicas,)
            and skipped.dtype == torch.int64
        )
        if not right or not bool(((skipped >= 0) & (skipped <= found["step"])).all()):
            _refuse(
                place,
                "skipped_steps",
                f"an int64 tensor of {own.replicas} numbers up to step",
                skipped,
            )
    for name in ("silent", "doublings"):
        found[name] = _count(
            place, name, progress[name], 1 << 10 if name == "doublings" else 1 << 32
        )
    found["answered"] = checks.flag(place, "answered", progress["answered"])
    found["chosen_sigma"] = _chosen_sigma(place, progress["chosen_sigma"])
    # Only told, and perhaps of losses that were not finite.
    for name in ("last_rpe", "last_learning_rate"):
        found[name] = _report(place, name, found[name], own.replicas)
    return found


def _chosen_sigma(place: str, value: Any) -> float:
    number = number_of(value)
    if number is None or not 0.0 <= number < math.inf:
        _refuse(place, "chosen_sigma", "a finite number >= 0", value)
    return float(number or 0.0)


def _count(place: str, name: str, value: Any, below: int) -> int:
    number = number_of(value)
    if not isinstance(number, int) or not 0 <= number < below:
        _refuse(place, name, f"an int in [0, {below})", value)
    return int(number or 0)


def _report(place: str, name: str, value: Any, replicas: int | None) -> float | Tensor:
    if (number := number_of(value)) is not None:
        return as_float(number)
    if (
        replicas is None
        or not isinstance(value, Tensor)
        or value.shape != (replicas,)
        or value.dtype != torch.float64
    ):
        _refuse(place, name, "a number, or of a fleet float64 numbers", value)
    return value
