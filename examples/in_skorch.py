"""A network without a backward pass in a pipeline and a grid search of scikit-learn."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from dopaminergic.integrations.skorch import ForwardClassifier


class Network(nn.Module):
    """One hidden layer; logits of ten digits."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits `(batch, 10)`."""
        return self.layers(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each fit (8)")
    epochs = parser.parse_args().epochs

    pixels, digits = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(np.asarray(pixels, np.float32), digits, random_state=0)
    torch.manual_seed(0)
    net = ForwardClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
    )
    grid = {
        "forwardclassifier__module__hidden": [8, 16],
        "forwardclassifier__optimizer__directions": [40, 80],
    }
    search = GridSearchCV(make_pipeline(StandardScaler(), net), grid, cv=2)
    search.fit(x, y)
    found = search.cv_results_
    for settings, score in zip(found["params"], found["mean_test_score"], strict=True):
        print({name.split("__", 1)[1]: value for name, value in settings.items()}, f"{score:.3f}")
    passes = search.best_estimator_[-1].optimizer_.forward_passes
    print(f"test accuracy of the best {search.score(x_test, y_test):.3f} after {passes:,} passes")


if __name__ == "__main__":
    main()
