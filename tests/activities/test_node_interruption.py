"""Whatever stops an evaluation, nothing of a step is left behind."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dopaminergic import NodeDopamine, NodePerturbation, squared_error
from optimizers import copies, randn, same

x, y = randn(12, 4, seed=1), randn(12, 2, seed=2)


class Stopped(Exception):  # noqa: N818
    """Raised by a closure."""


def modes() -> int:
    return torch._C._len_torch_dispatch_stack()


def net(width: int) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, width),
        nn.Tanh(),
        nn.BatchNorm1d(width, affine=False),
        nn.Dropout(0.2),
        nn.Linear(width, 2),
    ).double()


def everything(optimizer: Any, model: nn.Module) -> tuple[Any, ...]:
    state = optimizer.state_dict()
    memory = state["forward"].pop("memory")
    return (
        pickle.dumps(state["forward"]),
        {name: value.numpy().tobytes() for name, value in memory.items()},
        [p.numpy().tobytes() for p in copies(model.parameters())],
        [p.numpy().tobytes() for p in copies(model.buffers())],
        modes(),
        torch._C._len_torch_function_stack(),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
    )


KINDS = [
    pytest.param((NodeDopamine, 6), id="second order"),
    pytest.param((NodeDopamine, 300), id="first order"),
    pytest.param((NodePerturbation, 6), id="plain"),
]


@pytest.mark.filterwarnings("ignore:.*depend on each other:RuntimeWarning")
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["before", "within", "after"])
@pytest.mark.parametrize("fresh", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_stopped_leaves_nothing(
    kind: Any, fresh: bool, where: str, error: type[BaseException]
) -> None:
    rule, width = kind
    model = net(width)
    optimizer = rule(model)
    fails = -1
    calls = 0

    def stop(*_: Any) -> None:
        if calls - 1 == fails:
            raise error("stop")

    model[2].register_forward_hook(lambda *_: stop() if where == "within" else None)

    def closure() -> Any:
        nonlocal calls
        calls += 1
        if where == "before":
            stop()
        found = squared_error(model(x), y)
        if where == "after":
            stop()
        return found

    if not fresh:
        optimizer.step(closure)
        optimizer.step(closure)
    evaluations = 0
    for fails in range(10):  # noqa: B007  (`stop` reads it)
        calls = 0
        before = everything(optimizer, model)
        random = torch.get_rng_state()
        try:
            optimizer.step(closure)
        except error:
            assert everything(optimizer, model) == before
            # An evaluation that ended has drawn its numbers, as in any rule.
            assert torch.equal(random, torch.get_rng_state()) == (where != "after")
            evaluations += 1
        else:
            break
    assert evaluations == calls
    assert evaluations >= {(NodeDopamine, 6): 3}.get(kind, 2)


@pytest.mark.filterwarnings("ignore:.*depend on each other:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_after_one_that_was_stopped_is_the_step_that_would_have_been(kind: Any) -> None:
    rule, width = kind
    ends = []
    for stopped in (False, True):
        model = net(width)
        optimizer = rule(model)
        for _ in range(3):
            if stopped:
                calls: list[int] = []

                def closure(model: Any = model, calls: Any = calls) -> Any:
                    calls.append(0)
                    if len(calls) == 2:
                        raise Stopped
                    return squared_error(model(x), y)

                with pytest.raises(Stopped):
                    optimizer.step(closure)
            optimizer.step(lambda model=model: squared_error(model(x), y))
        ends.append(copies(model.parameters()))
    assert same(*ends)


@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_an_error_of_the_closure_is_the_users_own(rule: Any) -> None:
    model = net(6)
    optimizer = rule(model)

    def closure() -> Any:
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        optimizer.step(closure)


@pytest.mark.filterwarnings("ignore:.*depend on each other:RuntimeWarning")
@pytest.mark.parametrize("rule", [NodeDopamine, NodePerturbation])
def test_a_step_within_a_step_is_refused(rule: Any) -> None:
    model = net(6)
    optimizer = rule(model)
    told: list[str] = []

    def closure() -> Any:
        for inner in (optimizer.step, optimizer.probe):
            with pytest.raises(RuntimeError, match="its own closure") as error:
                inner(lambda: squared_error(model(x), y))
            told.append(str(error.value))
        return squared_error(model(x), y)

    optimizer.step(closure)
    assert told
    assert max(map(len, told)) <= 300


def test_modes_of_the_user_stay_around_a_step() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Count.seen += 1
            return func(*args, **(kwargs or {}))

    ends: list[list[Tensor]] = []
    for counted in (False, True):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(randn(*p.shape, seed=i))
        optimizer = NodeDopamine(model)

        def closure(model: Any = model) -> Any:
            return squared_error(model(x), y)

        if counted:
            with Count():
                optimizer.step(closure)
                assert modes() == 1
        else:
            optimizer.step(closure)
        ends.append(copies(model.parameters()))
    assert Count.seen
    assert same(*ends)
