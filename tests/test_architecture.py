"""Imports go one way: the core needs torch and numpy alone, the lab needs the core, and numba is
optional.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dopaminergic
from optimizers import ROWS, Regression, same

ROOT = Path(dopaminergic.__file__).parent
LEAVES = ("lab", "integrations")  # nobody inside imports them
ENTRANCE = ROOT / "__main__.py"  # `python -m dopaminergic` is the lab's command line
CORE = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] not in LEAVES and path != ENTRANCE
]
ALLOWED = {"torch", "numpy", "dopaminergic"} | set(sys.stdlib_module_names)
# Only when they are there.
OWN = {"noise/cpu": {"numba", "llvmlite"}, "noise/gpu": {"triton"}, "jax.py": {"jax"}}
LAB = ["matplotlib", "rich", "pandas", "scipy", "sklearn", "statsmodels", "pyarrow", "jinja2"]


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at whatever depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what is imported"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_torch_and_numpy_only(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    allowed = ALLOWED.union(*(names for own, names in OWN.items() if place.startswith(own)))
    assert {name.split(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_never_imports_the_lab(path: Path) -> None:
    leaves = tuple(f"dopaminergic.{leaf}" for leaf in LEAVES)
    assert not [name for name in imported(path) if name.startswith(leaves)]


def test_numba_is_imported_by_one_package_only() -> None:
    users = {
        path.parent
        for path in CORE
        if {"numba", "llvmlite"} & {n.split(".")[0] for n in imported(path)}
    }
    assert users == {ROOT / "noise" / "cpu"}


def test_rules_know_no_tensors_of_weights() -> None:
    """A rule is a function of losses: neither the noise nor the weights are in its reach."""
    for name in ("dopamine.py", "prediction_errors.py", "baselines.py", "scalars.py"):
        assert not [
            i
            for i in imported(ROOT / name)
            if i.startswith(("dopaminergic.noise", "dopaminergic.weights"))
        ]


def test_all_public_names_are_there() -> None:
    assert set(dopaminergic.__all__) <= set(dir(dopaminergic))
    assert len(dopaminergic.__all__) == len(set(dopaminergic.__all__))
    assert {row.name for row in ROWS} <= set(dopaminergic.__all__)


BARE = """
import logging, sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None  # as if it were not installed
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
logging.getLogger("dopaminergic").addHandler(handler)
import torch
torch.set_num_threads(1)
import dopaminergic
assert not said, "importing alone says nothing"
sys.path.insert(0, sys.argv[1])
from optimizers import ROWS, Regression
ends = {}
for row in ROWS:
    problem = Regression(dtype=torch.float32)
    optimizer = row.make(problem.model.parameters(), noise="rademacher", directions=2, seed=3)
    for _ in range(2):
        optimizer.step(problem.loss)
    ends[row.name] = problem.weights()
[(level, words)] = said
assert level == "WARNING" and "numba" in words and "pip install" in words, said
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & set(sys.argv[2].split(",")), loaded
assert not [name for name in sys.modules if name.startswith("dopaminergic.lab")]
torch.save(ends, sys.argv[3])
"""


def test_without_numba_and_the_lab_the_bits_are_the_same(tmp_path: Path) -> None:
    """One line in the log says that it is slower."""
    file = tmp_path / "bare.pt"
    arguments = [str(Path(__file__).parent), ",".join(["numba", *LAB]), str(file)]
    subprocess.run([sys.executable, "-W", "error", "-c", BARE, *arguments], check=True, timeout=300)
    slow = torch.load(file, weights_only=True)
    for row in ROWS:
        problem = Regression(dtype=torch.float32)
        optimizer = row.make(problem.model.parameters(), noise="rademacher", directions=2, seed=3)
        for _ in range(2):
            optimizer.step(problem.loss)
        assert same(slow[row.name], problem.weights()), row.name


def test_without_jax_its_module_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['jax'] = None\nimport dopaminergic\nimport dopaminergic.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "needs JAX 0.8 or later: pip install 'dopaminergic[jax]'"
    )


def test_assignments_of_several_values_at_once_are_few() -> None:
    """`a, b = x, y` is for values that belong together: at most 8 for 1,000 lines of code."""
    lines = pairs = 0
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        lines += sum(
            1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
        )
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                pairs += isinstance(node.targets[0], ast.Tuple)
    assert pairs <= 8 * lines / 1000


OF_NAMED_TUPLES = {"_replace", "_fields", "_asdict", "_make"}


def is_itself(value: ast.expr) -> bool:
    """`self`, `cls` or `super()`."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def private_names(tree: ast.Module) -> set[str]:
    """Names with an underscore that a file defines: in a class, in a module or of `self`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if is_itself(node.value) else set()
        if isinstance(node, ast.ClassDef | ast.Module):
            names |= {
                found.id
                for statement in node.body
                if isinstance(statement, ast.Assign | ast.AnnAssign)
                for found in ast.walk(statement)
                if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Store)
            }
    own = {name for name in names if name.startswith("_") and not name.startswith("__")}
    return own - OF_NAMED_TUPLES


def reached_into(tree: ast.Module, elsewhere: set[str]) -> list[str]:
    """Private names of other files, each as it is used."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in elsewhere and not is_itself(node.value):
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if alias.name in elsewhere]
        if isinstance(node, ast.Call) and len(node.args) > 1 and not is_itself(node.args[0]):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in elsewhere:
                found.append(ast.unparse(node))
    return found


def test_no_file_uses_a_private_name_of_another() -> None:
    """Private names are those of our own files; torch and numba have some that we cannot avoid."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    own = {path: private_names(tree) for path, tree in trees.items()}
    every = set().union(*own.values())
    assert "_progress" in own[ROOT / "stateful.py"]
    found = {
        str(path.relative_to(ROOT)): uses
        for path, tree in trees.items()
        if (uses := reached_into(tree, every - own[path]))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "optimizer._progress.step",
        "self.optimizer._progress = 3",
        "getattr(optimizer, '_progress')",
        "from dopaminergic.stateful import _progress",
    ],
)
def test_private_names_are_found_in_every_form(line: str) -> None:
    assert len(reached_into(ast.parse(line), {"_progress"})) == 1
    assert reached_into(ast.parse("self._progress, torch._C, x._replace()"), {"_progress"}) == []


def test_a_rule_of_ones_own_is_a_sibling_of_vector_dopamine() -> None:
    """The base knows no weights, so that an optimizer may perturb something else."""
    for name in ("optimizer.py", "stateful.py"):
        known = {i for i in imported(ROOT / name) if i.startswith("dopaminergic.weights")}
        assert known <= {
            "dopaminergic.weights.interruption",
            "dopaminergic.weights.interruption.room_on_the_stack",
            "dopaminergic.weights.interruption.uninterrupted",
        }
    assert not issubclass(dopaminergic.VectorDopamine, dopaminergic.ScalarRule)
