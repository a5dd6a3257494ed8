"""Lightning's Trainer, run for real on small regressions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from dopaminergic import Dopamine2, EvolutionStrategy, NodeDopamine, VectorDopamine, squared_error
from dopaminergic.integrations.lightning import ForwardModule
from optimizers import same

X = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
Y = torch.sin(X.sum(1, keepdim=True))
BASE: Any = Callback  # its hooks name all their arguments


class Net(ForwardModule):
    """A regression; `schedule` makes one of an optimizer."""

    def __init__(self, make: Any = Dopamine2, schedule: Any = None, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)
        )
        self.make, self.schedule = make, schedule
        self.evaluations = 0

    def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.evaluations += 1
        found = squared_error(self.layers(x), y)
        self.log("train_loss", found.mean(), on_step=True, on_epoch=True, batch_size=len(x))
        return found

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(x), y), batch_size=len(x))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        return optimizer if self.schedule is None else self.schedule(optimizer)

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]


def loader(size: int = 32, count: int = 96) -> DataLoader:
    return DataLoader(TensorDataset(X[:count], Y[:count]), size)


def trainer_of(folder: Path, **more: Any) -> Any:
    given = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return lightning.Trainer(**{**given, **more})


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*but have no .val_dataloader."),
    pytest.mark.filterwarnings("ignore:.*lower value for log_every_n_steps"),
]


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Dopamine2, VectorDopamine, NodeDopamine, EvolutionStrategy])
def test_it_takes_the_steps_of_a_loop_of_ones_own(tmp_path: Path, make: Any) -> None:
    net, own = Net(make), Net(make)
    trainer = trainer_of(tmp_path)
    trainer.fit(net, loader())
    optimizer = make(own.parameters())
    for _ in range(2):
        for x, y in loader():
            optimizer.step(lambda x=x, y=y: squared_error(own.layers(x), y))
    assert same(net.weights(), own.weights())
    assert trainer.global_step == 6
    assert trainer.optimizers[0].forward_passes == optimizer.forward_passes


def test_no_graph_is_recorded(tmp_path: Path) -> None:
    class Watched(Net):
        def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
            assert not torch.is_grad_enabled()
            return super().compute_outcome(batch, batch_idx)

    net = Watched()
    trainer_of(tmp_path).fit(net, loader())
    assert net.evaluations == 12
    assert all(p.grad is None for p in net.parameters())


def test_micro_batches_are_the_whole_batch(tmp_path: Path) -> None:
    """The last step of an epoch has fewer of them, and a smaller one."""
    ends = []
    for size, accumulated in ((32, 1), (8, 4)):
        net = Net().double()
        trainer = trainer_of(tmp_path, accumulate_grad_batches=accumulated)
        data = TensorDataset(X[:77].double(), Y[:77].double())
        trainer.fit(net, DataLoader(data, size))
        assert trainer.global_step == 6
        assert trainer.optimizers[0].forward_passes == 12
        ends.append(net.weights())
    pairs = zip(*ends, strict=True)
    # Regrets are of the size of sigma, 0.001, and have the rounding of a loss.
    assert max((p - q).abs().max().item() for p, q in pairs) < 1e-10


def test_a_number_without_slope_will_do(tmp_path: Path) -> None:
    class Share(Net):
        def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return {"loss": float(((self.layers(x) > 0) != (y > 0)).float().mean())}

    def errors(net: Net) -> float:
        return float(((net.layers(X) > 0) != (Y > 0)).float().mean())

    net = Share(lambda p: EvolutionStrategy(p, lr=0.1, sigma=0.3))
    before = errors(net)
    trainer_of(tmp_path, max_epochs=30).fit(net, loader(96))
    assert errors(net) < 0.6 * before


# ---- hooks, logs, schedules ----------------------------------------------------------------------


class Hooks(BASE):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.calls.append("start")

    def on_before_zero_grad(self, *_: Any) -> None:
        self.calls.append("zero_grad")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        assert len(optimizer.param_groups) == 1
        self.calls.append("step")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.calls.append("end")
        self.losses.append(outputs["loss"].item())


def test_hooks_are_called_once_a_step(tmp_path: Path) -> None:
    hooks, net = Hooks(), Net()
    trainer_of(tmp_path, max_epochs=1, callbacks=[hooks]).fit(net, loader())
    assert hooks.calls == ["start", "zero_grad", "step", "end"] * 3
    own = Net()
    optimizer = Dopamine2(own.parameters())
    steps = [optimizer.step(lambda x=x, y=y: squared_error(own.layers(x), y)) for x, y in loader()]
    assert hooks.losses == pytest.approx(steps, rel=1e-6)  # kept in float32
    hooks = Hooks()
    accumulating = trainer_of(tmp_path, max_epochs=1, callbacks=[hooks], accumulate_grad_batches=3)
    accumulating.fit(Net(), loader())
    assert hooks.calls == ["start", "zero_grad", "end", "start", "end", "start", "step", "end"]
    assert hooks.losses[:2] == [0.0, 0.0]
    assert hooks.losses[2] > 0.0


def test_what_an_evaluation_logs_is_heard_at_the_weights_alone(tmp_path: Path) -> None:
    logger, hooks = CSVLogger(tmp_path), Hooks()
    net = Net(lambda p: Dopamine2(p, directions=4, sigma=0.5))  # perturbed losses are others
    trainer_of(tmp_path, logger=logger, callbacks=[hooks], max_epochs=1).fit(net, loader())
    with open(logger.experiment.metrics_file_path) as file:
        rows = list(csv.DictReader(file))
    steps = [float(row["train_loss_step"]) for row in rows if row["train_loss_step"]]
    epochs = [float(row["train_loss_epoch"]) for row in rows if row["train_loss_epoch"]]
    assert steps == pytest.approx(hooks.losses, rel=1e-6)
    assert epochs == pytest.approx([sum(steps) / 3], rel=1e-6)
    assert net.evaluations == 15


def test_metrics_that_add_up_are_told_of_further_evaluations(tmp_path: Path) -> None:
    class Counting(Net):
        def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
            seen.append(self.perturbed)
            return super().compute_outcome(batch, batch_idx)

    seen: list[bool] = []
    net = Counting(lambda p: Dopamine2(p, directions=2))
    trainer_of(tmp_path, max_epochs=1).fit(net, loader(), loader())
    assert seen == [False, True, True] * 3
    assert not net.perturbed


@pytest.mark.parametrize(("interval", "rate"), [("step", 1.5 * 0.5**6), ("epoch", 1.5 * 0.25)])
def test_schedules_are_stepped(tmp_path: Path, interval: str, rate: float) -> None:
    def schedule(optimizer: Any) -> Any:
        halving = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": halving, "interval": interval},
        }

    trainer = trainer_of(tmp_path)
    trainer.fit(Net(schedule=schedule), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == rate


def test_early_stopping_and_validation_work(tmp_path: Path) -> None:
    net = Net(VectorDopamine)
    stop = EarlyStopping("val_loss", patience=2, stopping_threshold=0.05)
    trainer = trainer_of(tmp_path, max_epochs=60, callbacks=[stop])
    trainer.fit(net, loader(96), loader(96))
    assert trainer.callback_metrics["val_loss"] < 0.05
    assert trainer.current_epoch < 60


def test_an_epoch_that_is_broken_off_leaves_no_micro_batches(tmp_path: Path) -> None:
    class Stop(BASE):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 0

    net = Net()
    trainer = trainer_of(tmp_path, callbacks=[Stop()], accumulate_grad_batches=3)
    trainer.fit(net, loader())
    assert trainer.global_step == 0
    again = trainer_of(tmp_path, accumulate_grad_batches=3)
    again.fit(net, loader())
    assert again.global_step == 2
    assert again.optimizers[0].forward_passes == 4


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Dopamine2, VectorDopamine])
def test_a_run_that_is_resumed_ends_at_the_same_bits(tmp_path: Path, make: Any) -> None:
    def schedule(optimizer: Any) -> Any:
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]

    whole = Net(make, schedule)
    trainer_of(tmp_path, max_epochs=4).fit(whole, loader(), loader())

    saver = ModelCheckpoint(tmp_path, monitor="val_loss")
    half = Net(make, schedule)
    trainer_of(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(half, loader(), loader())
    resumed = Net(make, schedule)
    again = ModelCheckpoint(tmp_path, monitor="val_loss")
    more = trainer_of(tmp_path, max_epochs=4, callbacks=[again], enable_checkpointing=True)
    more.fit(resumed, loader(), loader(), ckpt_path=saver.best_model_path)
    assert same(whole.weights(), resumed.weights())


def test_bf16_computes_in_bfloat16_and_steps_farther(tmp_path: Path) -> None:
    net = Net()
    trainer = trainer_of(tmp_path, precision="bf16-mixed")
    trainer.fit(net, loader())
    assert trainer.optimizers[0].param_groups[0]["sigma"] == Dopamine2.default_sigmas[1]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"plugins": [MixedPrecision("16-mixed", "cpu")]},
            r"Net: precision='16-mixed' scales gradients.*bf16-mixed",
        ),
        ({"gradient_clip_val": 1.0}, r"Net: gradient_clip_val=1\.0 clips gradients.*leave it out"),
    ],
)
def test_what_needs_gradients_is_refused(tmp_path: Path, more: Any, words: str) -> None:
    trainer = trainer_of(tmp_path, **more)
    with pytest.raises(ValueError, match=words) as error:
        trainer.fit(Net(), loader())
    assert len(str(error.value)) <= 300


def test_other_optimizers_and_fleets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="return one optimizer of dopaminergic, got Adam") as error:
        trainer_of(tmp_path).fit(Net(torch.optim.Adam), loader())
    assert len(str(error.value)) <= 300

    class Fleet(Net):
        def configure_optimizers(self) -> Any:
            return Dopamine2([nn.Parameter(torch.ones(2, 3))], seed=[0, 1])

    with pytest.raises(ValueError, match="Fleet: it trains one model"):
        trainer_of(tmp_path).fit(Fleet(), loader())


def test_a_module_without_an_outcome_says_so(tmp_path: Path) -> None:
    class Empty(ForwardModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def configure_optimizers(self) -> Any:
            return Dopamine2(self.parameters())

    with pytest.raises(NotImplementedError, match=r"Empty\.compute_outcome is missing: name your"):
        trainer_of(tmp_path).fit(Empty(), loader())


def test_manual_optimization_steps_with_a_closure(tmp_path: Path) -> None:
    class Manual(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.layers, self.losses = Net().layers, []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            optimizer: Any = self.optimizers()
            self.losses.append(optimizer.step(lambda: squared_error(self.layers(x), y)))

        def configure_optimizers(self) -> Any:
            return Dopamine2(self.parameters())

    manual, automatic = Manual(), Net()
    trainer = trainer_of(tmp_path)
    trainer.fit(manual, loader())
    trainer_of(tmp_path).fit(automatic, loader())
    assert same([p.detach() for p in manual.parameters()], automatic.weights())
    assert trainer.global_step == len(manual.losses) == 6
