"""Every example runs as users run it, on a small budget, and does what it says it shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launching import run_scripts

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def printed(name: str, *arguments: str) -> str:
    """What an example prints; warnings are errors there too."""
    [done] = run_scripts(EXAMPLES / name, *arguments, environments=[{}])
    assert done.code == 0, done.err
    return done.out


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers that a pattern with one group finds."""
    return [float(found) for found in re.findall(pattern, text)]


def test_drop_in_learns_digits() -> None:
    text = printed("drop_in.py", "--steps", "250")
    losses = numbers(r"test loss ([\d.]+)", text)
    assert len(losses) == 6
    assert losses[-1] < 0.95 * losses[0]
    assert numbers(r"accuracy ([\d.]+)%", text)[0] > 30  # guessing: 10
    assert "after 500 forward passes" in text


def test_an_example_runs_in_a_fresh_process() -> None:
    """The others run in processes that have loaded the library already."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / "groups.py"), "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "learning rates" in done.stdout


def test_black_box_learns_to_balance() -> None:
    text = printed("black_box.py", "--steps", "12")
    first = numbers(r"step   0  share of the time fallen ([\d.]+)", text)[0]
    assert numbers(r"new starts: fallen ([\d.]+)", text)[0] < first - 0.1
    assert "after 192 batches" in text


def test_a_simulator_that_hangs_and_crashes_changes_no_bit() -> None:
    text = printed("subprocess_simulator.py", "--steps", "30")
    assert len(numbers(r"best cost ([\d.]+)", text)) == 2
    assert numbers(r"(\d+) trials lost", text)[1] >= 2
    assert numbers(r"best cost ([\d.]+)", text)[1] < 1  # without control: 2.5
    assert "bit for bit the same: True" in text


def test_a_service_is_fitted_to_measurements_though_answers_are_lost() -> None:
    text = printed("tcp_simulator.py", "--steps", "30")
    [(answers, questions)] = re.findall(r"(\d+) answers to (\d+) questions", text)
    assert int(answers) == 180
    assert int(questions) >= 183
    assert numbers(r"squared miss (\S+)", text)[0] < 1e-3  # at the start: 0.2


def test_micro_batches_are_the_large_batch() -> None:
    text = printed("micro_batches.py", "--steps", "60")
    at_once, micro = re.findall(r"loss ([\d.]+) -> ([\d.]+)", text)
    assert at_once == micro
    assert float(at_once[1]) < float(at_once[0])
    # Sums in another order differ by rounding, which the steps magnify.
    assert numbers(r"difference of a weight: (\S+)", text)[0] < 1e-5


def test_own_loop_resumes_bit_for_bit() -> None:
    text = printed("own_loop.py", "--steps", "400")
    [(start, end)] = re.findall(r"loss ([\d.]+) -> ([\d.]+)", text)
    assert float(end) < float(start) / 2
    assert "bit for bit the same: True" in text


def test_groups_leave_frozen_weights_alone() -> None:
    text = printed("groups.py", "--steps", "400")
    [(start, end)] = re.findall(r"mean loss ([\d.]+) -> ([\d.]+)", text)
    assert float(end) < 0.9 * float(start)
    moved = [float(change) > 0 for change in re.findall(r"largest change ([\d.]+)", text)]
    assert moved == [False, False, True, True, True, True]
    rates = numbers(r"[\[ ]([\d.]+)[,\]]", text[text.index("learning rates") :])
    assert rates[1] == 2.0
    assert rates[0] == rates[2] != 2.0


def test_spiking_network_learns_where_no_gradient_reaches() -> None:
    text = printed("spiking.py", "--steps", "60")
    losses = numbers(r"loss ([\d.]+)", text)
    assert losses[-1] < losses[0] - 0.05
    assert numbers(r"right on ([\d.]+)%", text)[0] > 65  # guessing: 50
    assert "backpropagation: None" in text


def test_vector_dopamine_against_adam() -> None:
    text = printed("against_adam.py", "--budget", "1500")
    losses = numbers(r"error on the batch ([\d.]+)", text)
    assert losses[-1] < 0.2 * losses[0]
    passes = numbers(r"([\d,]+) forward passes", text.replace(",", ""))
    assert 1200 <= passes[-1] <= 1500
    [(vector, adam)] = re.findall(r"VectorDopamine ([\d.]+), Adam ([\d.]+)", text)
    assert float(vector) < 0.1  # forecasting the mean: 1
    assert float(adam) < 0.1  # the comparison is with something that learns


def test_two_ranks_end_at_the_bits_of_one() -> None:
    one = printed("ranks.py", "--steps", "100").splitlines()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    # As torchrun does, which test_distributed.py starts.
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    ranks = run_scripts(EXAMPLES / "ranks.py", "--steps", "100", environments=environments)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert ranks[1].out == ""
    two = ranks[0].out
    assert one[1].startswith("sum of the weights")
    assert two.splitlines()[1] == one[1]
    [(start, end)] = re.findall(r"loss ([\d.]+) -> ([\d.]+)", one[0])
    assert float(end) < float(start)
    assert "2 ranks" in two


def test_a_model_is_shipped_as_a_journal() -> None:
    text = printed("journal.py", "--steps", "100")
    assert "bit for bit the same: True" in text
    assert "as it was after 50 steps: True" in text
    [journal] = numbers(r"journal ([\d]+) bytes", text.replace(",", ""))
    assert journal < 100 * 40 + 2500  # and the header


def test_many_runs_in_jax_solve_xor() -> None:
    text = printed("jax_fleet.py", "--runs", "64", "--steps", "1000", "--hidden", "8")
    assert "64 runs, 128,000 forward passes" in text
    assert numbers(r"right in ([\d.]+)%", text)[0] > 90


def test_hugging_face_learns_and_resumes_bit_for_bit() -> None:
    pytest.importorskip("transformers")
    text = printed("hugging_face.py", "--epochs", "6")
    losses = numbers(r"'eval_loss': '([\d.]+)'", text)
    assert losses[5] < 0.92 * losses[0]
    assert losses[6:] == losses[3:6]
    assert "bit for bit the same: True" in text


def test_skorch_searches_over_an_optimizers_settings() -> None:
    pytest.importorskip("skorch")
    text = printed("in_skorch.py", "--epochs", "3")
    assert len(numbers(r"\} ([\d.]+)", text)) == 4
    assert numbers(r"best ([\d.]+)", text)[0] > 0.5  # guessing: 0.1


def test_lightning_learns_digits() -> None:
    pytest.importorskip("lightning")
    text = printed("in_lightning.py", "--epochs", "2")
    assert len(numbers(r"accuracy ([\d.]+)", text)) == 2
    assert numbers(r"best ([\d.]+)", text)[0] > 0.8  # guessing: 0.1
    assert "after 22 steps" in text


def test_logs_go_where_callbacks_say() -> None:
    pytest.importorskip("tensorboard")
    text = printed("logs.py", "--steps", "100")
    rows = [line.split(",") for line in text.splitlines()[1:6]]
    assert [row[0] for row in rows] == ["20", "40", "60", "80", "100"]
    assert "TensorBoard: 1 file; in a list: 5 rows" in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 72  # of at most 100 columns
    assert f'printed("{path.name}"' in Path(__file__).read_text()
