"""A Lightning module without a backward pass: digits, a validation and the best checkpoint."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dopaminergic import VectorDopamine, cross_entropy
from dopaminergic.integrations.lightning import ForwardModule

warnings.filterwarnings("ignore", module="lightning")
warnings.filterwarnings("ignore", category=FutureWarning)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Digits(ForwardModule):
    """One hidden layer. Its `compute_outcome` was a `training_step`, and the rest is as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
        """The logits, with their losses."""
        return cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("accuracy", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        """Print it."""
        if not self.trainer.sanity_checking:
            optimizer: Any = self.optimizers()
            accuracy = float(self.trainer.callback_metrics["accuracy"])
            print(f"accuracy {accuracy:.3f} after {optimizer.forward_passes:,} passes")

    def configure_optimizers(self) -> Any:
        """Nothing to tune."""
        return VectorDopamine(self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="epochs (8)")
    epochs = parser.parse_args().epochs
    seed_everything(0, verbose=False)
    pixels, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float() / 16, digits)
    train, test = torch.utils.data.random_split(data, [1297, 500])
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="accuracy", mode="max")
        quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[best], **quiet)
        trainer.fit(Digits(), DataLoader(train, 128, shuffle=True), DataLoader(test, 500))
        print(f"best {best.best_model_score:.3f} after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
