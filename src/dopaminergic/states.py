"""Reads a saved state: all that the constructor takes, and numbers that a rule could have come to.

A state may come from a file that somebody else made, or that was damaged. It is read as a whole
before anything of the optimizer changes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopaminergic import checks, rule_states
from dopaminergic.plain import as_float, brief, is_list, number_of, plain

# Steps are numbered by 32 bits, and a run should get some way from here.
LAST_STEP = (1 << 32) - (1 << 20)
OLDER = ("batched", "on_use")  # parts that states of earlier versions lack
# Wrappers put these before names of parameters.
PREFIXES = ("module", "_orig_mod", "_fsdp_wrapped_module")


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
        rule_states.numbers(place, forward["rule"], own.start),
        _progress(place, forward["progress"], own),
        **flags,
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
        checks.refuse(place, name, f"a {type(own).__name__} as this optimizer has it", value)


def _equal(theirs: Any, own: Any) -> bool:
    """Whether a value equals a string, an int, or lists of them.

    The value may be anything, for example a tensor, whose own comparison would give no bool.
    """
    if isinstance(own, list):
        return is_list(theirs) and len(theirs) == len(own) and all(map(_equal, theirs, own))
    return type(theirs) is type(own) and theirs == own


def _few(value: Any) -> str:
    return brief(value)[:75]


def _same_keys(
    place: str, name: str, theirs: Any, own: dict[str, Any], older: tuple[str, ...] = ()
) -> None:
    if not isinstance(theirs, dict):
        checks.refuse(place, name, "a dict", theirs)
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
        checks.refuse(place, name, f"a dict of {' and '.join(own)}", flags)
    return {key: checks.flag(place, f"{name} {key}", value) for key, value in flags.items()}


# ---- groups --------------------------------------------------------------------------------------


def _groups(place: str, saved: dict[str, Any], own: Own) -> list[dict[str, Any]]:
    """The groups as they are loaded, with numbers in plain form."""
    if not isinstance(saved.get("state"), dict):
        checks.refuse(place, "state", "a dict", saved.get("state"))
    groups: Any = saved.get("param_groups")
    if not is_list(groups) or not all(isinstance(group, dict) for group in groups):
        checks.refuse(place, "param_groups", "a list of dicts", groups)
    theirs = [len(group["params"]) if is_list(group.get("params")) else None for group in groups]
    ours = [len(group["params"]) for group in own.groups]
    if theirs != ours:
        raise ValueError(
            f"{place}: the state has parameter groups of {brief(theirs)} parameters, this "
            f"optimizer of {brief(ours)}; "
            "make the same groups first"
        )
    numbers = [number for group in groups for number in group["params"]]
    if not all(type(number) is int for number in numbers) or len({*numbers}) != len(numbers):
        checks.refuse(place, "params", "numbers of parameters, each once", numbers)
    for group in groups:
        names: Any = group.get("param_names", [""] * len(group["params"]))
        right = is_list(names) and len(names) == len(group["params"])
        if not right or not all(isinstance(name, str) for name in names):
            checks.refuse(place, "param_names", f"a list of {len(group['params'])} names", names)
    _same_order(place, groups, own.groups)
    return [{**plain(group), **checks.rates(place, group, own.replicas)} for group in groups]


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
            checks.refuse(
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
        checks.refuse(place, "chosen_sigma", "a finite number >= 0", value)
    return float(number or 0.0)


def _count(place: str, name: str, value: Any, below: int) -> int:
    number = number_of(value)
    if not isinstance(number, int) or not 0 <= number < below:
        checks.refuse(place, name, f"an int in [0, {below})", value)
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
        checks.refuse(place, name, "a number, or of a fleet float64 numbers", value)
    return value
