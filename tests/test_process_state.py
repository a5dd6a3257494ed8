"""All that a process may have set for torch: default devices and dtypes, inference mode, a tracer
around the step.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dopaminergic
from dopaminergic import Dopamine, VectorDopamine, check_estimator, squared_error
from optimizers import Regression, Row, copies, randn, same, through_a_file

ROOT = Path(dopaminergic.__file__).parent
MAKERS = (
    "zeros",
    "ones",
    "empty",
    "full",
    "eye",
    "arange",
    "linspace",
    "tensor",
    "as_tensor",
    "rand",
    "randn",
)


@pytest.fixture(params=["meta", torch.float64, torch.float16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets a default device ("meta" stands for any other than the weights') or dtype, for as long
    as the test takes.
    """
    dtype = torch.get_default_dtype()

    def choose() -> None:
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    try:
        yield choose
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize(
    "settings", [{}, {"directions": 8, "noise": "gaussian"}, {"seed": [1, 2, 3]}], ids=str
)
def test_defaults_of_torch_do_not_reach_a_run(
    any_row: Row, settings: Any, default: Callable[[], None]
) -> None:
    ends = []
    for change in (False, True):
        fleet = "seed" in settings
        w = nn.Parameter(randn(3, 4) if fleet else randn(12))
        target = randn(*w.shape, seed=1)
        if change:
            default()
        optimizer = any_row.make([w], **settings)
        losses = [optimizer.step(lambda w=w, t=target: squared_error(w, t)) for _ in range(4)]
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.probe(lambda w=w, t=target: squared_error(w, t))
        optimizer.step()
        ends.append((str(losses), w.detach().numpy().tobytes(), str(optimizer.last_rpe)))
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("rule", [Dopamine, VectorDopamine], ids=lambda rule: rule.__name__)
def test_batches_and_lone_losses_do_not_depend_on_them(
    rule: Any, default: Callable[[], None]
) -> None:
    ends = []
    for change in (False, True):
        problem = Regression(dtype=torch.float32)
        if change:
            default()
        batched = {} if rule is VectorDopamine else {"batched": True, "directions": 8}
        optimizer = rule(problem.model.parameters(), **batched)
        for closure in (problem.loss, problem.loss, lambda p=problem: float(p.loss())):
            optimizer.step(closure)
        ends.append(b"".join(p.detach().numpy().tobytes() for p in problem.model.parameters()))
    assert ends[0] == ends[1]


def test_the_estimator_is_checked_under_them(default: Callable[[], None]) -> None:
    problem = Regression()
    optimizer = dopaminergic.SPSA(problem.model.parameters(), lr=0.1)
    default()
    assert check_estimator(optimizer, problem.loss, probes=100).probes == 100


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sorted(ROOT.rglob("*.py"))
        if "lab" not in p.relative_to(ROOT).parts and p.name != "jax.py"
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_tensor_that_is_made_names_its_device(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in MAKERS
        ):
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            named = {keyword.arg for keyword in node.keywords}
            assert not of_torch or {"device", "dtype"} <= named, f"{path}:{node.lineno}"


@pytest.mark.parametrize("inside", ["the model", "the steps", "both"])
@pytest.mark.parametrize("n", [8, 300_000])
def test_models_and_steps_in_inference_mode_are_as_others(
    any_row: Row, n: int, inside: str
) -> None:
    ends = []
    for mode in (False, True):
        with torch.inference_mode(mode and inside != "the steps"):
            w = nn.Parameter(randn(n, dtype=torch.float32).clone())
        with torch.inference_mode(mode and inside != "the model"):
            optimizer = any_row.make([w])
            for _ in range(2):
                optimizer.step(lambda w=w: w.double().square().mean())
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        optimizer.step(lambda w=w: w.double().square().mean())
        ends.append(copies([w]))
    assert same(*ends)


def test_weights_in_inference_mode_that_others_write_to_are_taken_back_exactly() -> None:
    """Torch counts no versions of them, so that the grid of sigma is looked after in each step."""
    with torch.inference_mode():
        w = nn.Parameter(randn(300_000, dtype=torch.float32))
    optimizer = Dopamine([w], lr=0.0)
    for seed in range(3):
        with torch.inference_mode():
            w.copy_(randn(300_000, seed=seed, dtype=torch.float32))
        optimizer.step(lambda: float(w[0]))
        old = copies([w])
        optimizer.step(lambda: float(w[0]))
        assert same(copies([w]), old)


COMPILED = """
import sys
import torch
torch.set_num_threads(1)
import dopaminergic
from dopaminergic import Dopamine, VectorDopamine, squared_error
assert "torch._dynamo" not in sys.modules, "a second of every start"
x = torch.randn(32, 4)
for rule in (Dopamine, VectorDopamine):
    for half in ("step", "probe"):
        ends = []
        for compiled in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 1)
            optimizer = rule(model.parameters())

            def train():
                loss = getattr(optimizer, half)(lambda: squared_error(model(x), x[:, :1]))
                if half == "probe":
                    optimizer.step()
                return loss

            call = torch.compile(train, backend="eager") if compiled else train
            losses = [call() for _ in range(3)]
            ends.append((losses, model.weight.tolist()))
        print(rule.__name__, half, ends[0] == ends[1])
"""


def test_a_compiled_training_step_is_the_same_step() -> None:
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == [
        f"{rule} {half} True"
        for rule in ("Dopamine", "VectorDopamine")
        for half in ("step", "probe")
    ]
