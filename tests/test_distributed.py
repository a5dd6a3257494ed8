"""Ranks: what four of them find is what one finds, nothing but losses travels, and none hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import rank_scenarios
from dopaminergic import Dopamine, Dopamine2
from dopaminergic.channel import FRAME
from dopaminergic.distributed import Ranks
from dopaminergic.fingerprint import CHUNK, fingerprint
from launching import SIZE, ranks_that_leave, start
from optimizers import ROWS, VECTOR, Bowl, drawn, randn, same
from rank_scenarios import LARGE_ROWS, Shards, large, trained, vector_closures

NAMES = [row.name for row in ROWS]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parent.parent / "src"),
    "OMP_NUM_THREADS": "1",
}


found = ranks_that_leave(rank_scenarios.main, "ranks")


def assert_same(run: dict[str, Any], reference: dict[str, Any], what: object) -> None:
    assert run["losses"] == reference["losses"], what
    assert same(run["weights"], reference["weights"]), what
    assert str(run["state"]["forward"]["progress"]) == str(
        reference["state"]["forward"]["progress"]
    ), what
    assert str(run["state"]["forward"]["rule"]) == str(reference["state"]["forward"]["rule"]), what


# ---- the result does not depend on the number of ranks -------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_four_ranks_with_a_share_of_the_directions_equal_one_with_all(
    found: list[Any], row: Any
) -> None:
    """Bit for bit: losses, weights, the rule's state and all counters."""
    for noise in ("rademacher", "gaussian"):
        problem = Shards()
        reference = trained(row.make, problem, problem.loss, None, noise=noise)
        for rank in range(SIZE):
            assert_same(found[rank]["directions"][row.name, noise], reference, (noise, rank))


@pytest.mark.parametrize("row", LARGE_ROWS, ids=lambda row: row.name)
def test_large_models_come_back_to_the_bit_whichever_directions_a_rank_tries(
    found: list[Any], row: Any
) -> None:
    """Float32 weights without a copy; all ranks compared the hashes of theirs in each step."""
    problem = Bowl()
    reference = trained(row.make, problem, problem.loss, None, **large(row))
    reference = {**reference, "weights": [w[:1000] for w in reference["weights"]]}
    for rank in range(SIZE):
        assert_same(found[rank]["directions"][row.name, "large"], reference, rank)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_closures_that_draw_see_the_same_numbers_on_all_ranks(
    found: list[Any], row: Any, alone: Ranks
) -> None:
    """Wherever torch's generators stood, which are left there; as on one rank."""
    problem = Shards()
    reference = trained(row.make, problem, problem.noisy, alone)
    for rank in range(SIZE):
        assert_same(found[rank]["directions"][row.name, "noisy"], reference, rank)
        assert found[rank]["directions"][row.name, "generator"]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_shares_may_be_evaluated_as_batches(found: list[Any], row: Any) -> None:
    problem = Shards()
    reference = trained(row.make, problem, problem.loss, None)
    for rank in range(SIZE):
        run = found[rank]["directions"][row.name, "batched"]
        assert same(run["weights"], found[0]["directions"][row.name, "batched"]["weights"])
        assert all(
            torch.allclose(a, b, rtol=1e-9)
            for a, b in zip(run["weights"], reference["weights"], strict=True)
        )


@pytest.mark.parametrize("outcome", vector_closures())
def test_vector_dopamine_gathers_the_regrets_of_all_directions(
    found: list[Any], outcome: str
) -> None:
    problem = Shards()
    closure = vector_closures()[outcome](problem, problem.x, problem.y)
    reference = trained(VECTOR.make, problem, closure, None, memory=1)
    for rank in range(SIZE):
        assert_same(found[rank]["directions"][VECTOR.name, outcome], reference, rank)


@pytest.mark.parametrize("shards", [4, 2])
@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_losses_of_shards_are_averaged_in_the_order_of_ranks(
    found: list[Any], row: Any, shards: int
) -> None:
    """With two shards the directions are shared as well."""
    problem = Shards(shards)
    reference = trained(row.make, problem, problem.mean, None)
    for rank in range(SIZE):
        assert_same(found[rank]["data"][row.name, shards], reference, rank)


@pytest.mark.parametrize("shards", [4, 2])
@pytest.mark.parametrize("outcome", ["squared_error", "cross_entropy"])
def test_vector_dopamine_sums_over_shards_what_one_rank_finds_in_all_samples(
    found: list[Any], outcome: str, shards: int
) -> None:
    """Shards of different sizes; but for the order of sums, which is the same on all ranks."""
    problem = Shards()
    closure = vector_closures()[outcome](problem, problem.x, problem.y)
    reference = trained(VECTOR.make, problem, closure, None)
    for rank in range(SIZE):
        run = found[rank]["data"][outcome, shards]
        assert run["losses"] == pytest.approx(reference["losses"], rel=1e-9)
        assert all(
            torch.allclose(a, b, rtol=1e-7)
            for a, b in zip(run["weights"], reference["weights"], strict=True)
        )
        assert_same(run, found[0]["data"][outcome, shards], rank)


def test_vector_dopamine_learns_from_the_losses_of_shards(found: list[Any]) -> None:
    for shards in (4, 2):
        run = found[0]["data"]["losses", shards]
        assert run["losses"][-1] < 0.9 * run["losses"][0]
        assert all(
            same(run["weights"], found[rank]["data"]["losses", shards]["weights"])
            for rank in range(SIZE)
        )


def test_a_fleet_is_shared_like_a_single_model(found: list[Any]) -> None:
    for rank in range(SIZE):
        assert same(found[rank]["fleet"]["one"], found[rank]["fleet"]["four"])


def test_a_run_goes_on_from_its_state_bit_for_bit(found: list[Any]) -> None:
    for rank in range(SIZE):
        assert same(found[rank]["resumed"]["whole"], found[rank]["resumed"]["halves"])
        assert found[rank]["resumed"]["twin"]
        assert "save optimizer.state_dict()" in found[rank]["resumed"]["pickle"]


@pytest.mark.parametrize("row", [*ROWS, VECTOR], ids=[*NAMES, VECTOR.name])
def test_a_sharded_model_learns_what_a_whole_one_does(found: list[Any], row: Any) -> None:
    """FSDP2 on four ranks, one of which holds no row of the first layer; and on two, with shares of
    the directions.
    """
    for rank in range(SIZE):
        runs = found[rank]["sharded"]
        for shards in (4, 2):
            for dtype in ("torch.float64", "torch.bfloat16"):
                key = (row.name, shards, dtype)
                assert same(runs[*key, True], runs[*key, False]), (rank, key)
                assert str(runs[*key, True, "state"]) == str(runs[*key, False, "state"])
                assert not same(runs[*key, True], Shards(dtype=getattr(torch, dtype[6:])).weights())


def test_a_model_that_does_not_see_the_perturbation_is_named_once(found: list[Any]) -> None:
    for rank in range(SIZE):
        [said] = found[rank]["unseen"]
        assert "reshard_after_forward=True" in said


def test_shards_that_are_no_range_of_rows_are_refused(found: list[Any]) -> None:
    for rank in range(SIZE):
        message = found[rank]["misplaced"]
        assert message.startswith("ValueError"), message
        assert "Shard(0)" in message, message


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, VECTOR.name])
def test_a_rank_that_raises_or_has_a_nan_stops_all_at_the_same_step(
    found: list[Any], name: str
) -> None:
    for rank in range(SIZE):
        run = found[rank]["faults"][name]
        if rank == 2:
            assert run["message"] == "ArithmeticError: of the closure"
        else:
            assert run["message"].startswith("RuntimeError: rank 2 of 4 raised an exception"), run[
                "message"
            ]
        assert same(run["before"], run["after_error"])
        assert same(run["before"], run["after_nan"])
        assert (run["skipped"], run["warnings"]) == (1, 1)
        assert same(run["end"], found[0]["faults"][name]["end"])
        assert not same(run["end"], run["before"])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("start", "weights of rank 2 differ from those of rank 0"),
        ("frozen", "weights of rank 2 differ from those of rank 0"),
        ("rate", "rank 1 differs from rank 0 in the optimizer's settings"),
        (
            "later",
            "nothing was raised; nothing was raised; RuntimeError: the weights of rank 3 differ",
        ),
    ],
)
def test_ranks_that_differ_are_told_so(found: list[Any], what: str, said: str) -> None:
    """The last change happens in the second step, and every other step compares."""
    for rank in range(SIZE):
        assert said in found[rank]["differences"][what], (rank, found[rank]["differences"][what])


def test_weights_may_be_broadcast_at_the_start(found: list[Any]) -> None:
    assert [found[rank]["differences"]["broadcast"] for rank in range(SIZE)] == [
        "nothing was raised"
    ] * SIZE


def test_one_changed_bit_changes_the_fingerprint() -> None:
    for dtype, bits in (
        (torch.float32, torch.int32),
        (torch.float64, torch.int64),
        (torch.bfloat16, torch.int16),
    ):
        w, top = randn(CHUNK + 5).to(dtype), 8 * dtype.itemsize - 1
        before, seen = fingerprint([], [w]), set()
        for i in (0, CHUNK, CHUNK + 4):
            for bit in (1, 1 << 7, -1 << top):
                changed = w.clone()
                changed.view(bits)[i] ^= bit
                after = fingerprint([], [changed])
                assert after[:2] == before[:2]
                seen.add(after[2])
        assert len(seen - {before[2]}) == 9


def test_two_weights_that_change_places_change_the_fingerprint() -> None:
    w = randn(4)
    assert fingerprint([], [w]) != fingerprint([], [w[[1, 0, 2, 3]]])


# ---- what travels --------------------------------------------------------------------------------


def test_bytes_do_not_grow_with_the_model(found: list[Any]) -> None:
    """One frame a step and a rank, which has room for 28 losses; for VectorDopamine g and A, or the
    regrets.
    """
    sent = found[0]["bytes_sent"]
    for name in [*NAMES, VECTOR.name]:
        for shards in (1, 4):
            assert sent[name, 10, shards] == sent[name, 10_000, shards]
            if name != VECTOR.name:
                assert sent[name, 10, shards] == 2 * 8 * FRAME
    assert sent[VECTOR.name, 10, 4] <= 2 * 8 * (1.5 * 8 * 8 + 5 * 8 + 4 * FRAME)


# ---- a deadline ----------------------------------------------------------------------------------

IN_TIME = [0, 1, 3, 5]  # the first direction of each of four ranks, of seven


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_directions_that_are_late_are_left_out_by_all(found: list[Any], row: Any) -> None:
    """The run is that of the formulas with the directions that are left."""
    optimizer = row.make([torch.nn.Parameter(randn(12, seed=3))], directions=len(IN_TIME), seed=11)
    w = optimizer.param_groups[0]["params"][0]
    by_hand = {key: optimizer.param_groups[0][key] for key in ("lr", "sigma")}
    by_hand |= {
        key: x for key, x in optimizer.settings.items() if key not in ("noise", "seed", "batched")
    }

    def draw(step: int, k: int) -> list[float]:
        return drawn(optimizer, w, 0, step=step, direction=IN_TIME[k]).tolist()

    near = 1e-10 if optimizer.settings["noise"] == "rademacher" else 2e-6
    expected = list(
        row.plain(rank_scenarios.bowl, w.tolist(), draw, rank_scenarios.STEPS, **by_hand)
    )
    for rank in range(SIZE):
        run = found[rank]["deadline"][row.name]
        assert run["moved"] == [IN_TIME] * rank_scenarios.STEPS
        assert run["passes"] == rank_scenarios.STEPS * row.passes(len(IN_TIME))
        for got, want in zip(run["weights"], expected, strict=True):
            torch.testing.assert_close(
                got, torch.tensor(want, dtype=torch.float64), rtol=10 * near, atol=near
            )


@pytest.mark.parametrize(
    "name", [*NAMES, VECTOR.name, ("Dopamine", "shards"), (VECTOR.name, "shards"), "slow"], ids=str
)
def test_ranks_stay_equal_when_directions_are_missing_and_a_journal_repeats_them(
    found: list[Any], name: Any
) -> None:
    runs = [found[rank]["deadline"][name] for rank in range(SIZE)]
    for run in runs:
        assert same(run["weights"], runs[0]["weights"])
        assert torch.equal(run["twin"], run["weights"][-1])
        assert run["moved"] == runs[0]["moved"]


def test_vector_dopamine_leaves_out_what_is_late(found: list[Any]) -> None:
    run = found[0]["deadline"][VECTOR.name]
    assert run["moved"] == [IN_TIME] * rank_scenarios.STEPS
    norms = [float(w.norm()) for w in [randn(12, seed=3), *run["weights"]]]
    assert norms == sorted(norms, reverse=True)
    # Two shares of seven directions, and in both shards the first of each is tried.
    for name in ("Dopamine", VECTOR.name):
        assert found[0]["deadline"][name, "shards"]["moved"] == [[0, 3]] * rank_scenarios.STEPS


def test_a_slow_rank_costs_its_directions_and_not_those_of_others(found: list[Any]) -> None:
    """Rank 2 has directions 7 to 10, and time for the first of them; a busy machine may cost others
    some too.
    """
    for moved in found[0]["deadline"]["slow"]["moved"]:
        assert {0, 3, 7, 11} <= set(moved)
        assert not {8, 9, 10} & set(moved)
    assert "does not go with sharded parameters" in found[0]["deadline"]["sharded"]


# ---- arguments -----------------------------------------------------------------------------------


def test_ranks_need_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        Dopamine(Shards().model.parameters(), process_group=Ranks())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data_parallel": 2}, "must divide the number of ranks, 1, got 2"),
        ({"check_every": 0}, "check_every"),
        ({"deadline": -1.0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
    ],
)
def test_arguments_of_ranks(alone: Ranks, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ranks(**settings)


# ---- death ---------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from dopaminergic import Dopamine2
from dopaminergic.distributed import Ranks
from rank_scenarios import Shards

torch.set_num_threads(1)
folder, kill_at = sys.argv[1], int(sys.argv[2])
# A busy machine may need another attempt.
dist.init_process_group("gloo", timeout=timedelta(seconds=40))
rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
problem = Shards(2, rank)
optimizer = Dopamine2(problem.model.parameters(), directions=2, process_group=Ranks())
checkpoint = f"{{folder}}/checkpoint.pt"
step = 0
if os.path.exists(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    problem.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    step = saved["step"]
calls = 0

def loss():
    global calls
    calls += 1
    if rank == 1 and attempt == 0 and step == kill_at and calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return problem.loss()

for step in range(step, 12):
    calls = 0
    optimizer.step(loss)
    if rank == 0 and step % 3 == 2:  # not every step: what came after the last one is done again
        torch.save(
            {{"model": problem.model.state_dict(), "optimizer": optimizer.state_dict(),
                "step": step + 1}},
            f"{{checkpoint}}.new",
        )
        os.replace(f"{{checkpoint}}.new", checkpoint)  # whole or not at all
torch.save([*problem.model.state_dict().values(), torch.tensor(attempt)],
    f"{{folder}}/end{{rank}}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def launched(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two workers under torchrun, at a free port."""
    folder.mkdir()
    (folder / "train.py").write_text(script.format(tests=str(Path(__file__).parent)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--nproc-per-node=2",
        "--max-restarts=5",
    ]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--monitor-interval=0.1"]
    # Else workers may read the addresses of dead ones.
    environment = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        [*command, str(folder / "train.py"), str(folder), *arguments],
        env=environment,
        timeout=240,
        capture_output=True,
        text=True,
    )


def test_a_worker_killed_in_mid_step_costs_nothing(tmp_path: Path) -> None:
    """`torchrun` starts all again from the last checkpoint, and the end is that of an uninterrupted
    run of one rank.
    """
    done = launched(tmp_path / "killed", SCRIPT, "7")
    assert done.returncode == 0, done.stderr[-3000:]
    problem = Shards(2)
    optimizer = Dopamine2(problem.model.parameters(), directions=2)
    for _ in range(12):
        optimizer.step(problem.mean)
    for rank in range(2):
        *weights, attempt = torch.load(tmp_path / "killed" / f"end{rank}.pt", weights_only=True)
        assert int(attempt) >= 1, "no worker was killed"
        assert same(weights, problem.weights())


def dying(rank: int, folder: str) -> None:
    """Rank 1 ends without a word in the second step; rank 0 leaves what it was told."""
    from datetime import timedelta

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    problem, calls = Shards(), [0]

    def loss() -> torch.Tensor:
        calls[0] += 1
        if rank == 1 and calls[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return problem.loss()

    optimizer = Dopamine(problem.model.parameters(), process_group=Ranks())
    optimizer.step(loss)
    before = problem.weights()
    message = rank_scenarios.failing(lambda: optimizer.step(loss))
    torch.save(
        {"message": message, "same": same(before, problem.weights())}, Path(folder) / f"{rank}.pt"
    )
    os._exit(0)  # the group cannot be ended any more


def test_the_others_are_told_when_a_rank_has_died(tmp_path: Path) -> None:
    processes = start(dying, tmp_path, 2).processes
    for process in processes:
        process.join(120.0)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    told = torch.load(tmp_path / "0.pt", weights_only=True)
    assert told["message"].startswith("RuntimeError: rank 0 of 2 got no answer"), told
    assert len(told["message"]) <= len("RuntimeError: ") + 300
    assert told["same"]


ENDS = """
import os, torch, torch.distributed as dist
from dopaminergic import Dopamine, Ranks
def threads():
    return [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
weights = torch.nn.Parameter(torch.ones(3))
Dopamine([weights], process_group=Ranks()).step(lambda: weights.square().sum())
print(sum("gloo" in name for name in threads()))
dist.destroy_process_group()
print(sum("gloo" in name for name in threads()))
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has batch threads")
def test_threads_of_gloo_interrupt_nobody(alone: Ranks) -> None:
    threads, end = [], time.monotonic() + 30.0
    while (
        not threads and time.monotonic() < end
    ):  # a thread names itself; with other ranks, before they are connected
        threads = [
            t
            for t in Path("/proc/self/task").iterdir()
            if (t / "comm").read_text().startswith("gloo")
        ]
    assert threads
    Ranks()
    assert {os.sched_getscheduler(int(thread.name)) for thread in threads} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells the names of threads")
def test_no_thread_of_the_process_group_outlives_it() -> None:
    """One that wakes while Python shuts down aborts the process, now and then."""
    run = subprocess.run(
        [sys.executable, "-c", ENDS], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    before, after = map(int, run.stdout.split())
    assert before > 0
    assert after == 0
