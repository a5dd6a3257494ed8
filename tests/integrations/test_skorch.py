"""skorch, run for real: estimators, pipelines, grid searches, checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

skorch = pytest.importorskip("skorch")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Checkpoint, EpochScoring, LoadInitState, LRScheduler

from dopaminergic import Dopamine2, EvolutionStrategy, NodeDopamine, VectorDopamine, cross_entropy
from dopaminergic.integrations.skorch import ForwardClassifier, ForwardNet, ForwardRegressor
from optimizers import same

X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
TARGETS = np.sin(X[:, :1] + X[:, 1:2]).astype(np.float32)


class Network(nn.Module):
    def __init__(self, outputs: int = 2, hidden: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Probabilities(Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


def classifier(module: Any = Network, **more: Any) -> Any:
    torch.manual_seed(0)
    given = {"criterion": nn.CrossEntropyLoss, "max_epochs": 6, "batch_size": 60, "verbose": 0}
    return ForwardClassifier(module, **{**given, **more})


def weights(net: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.module_.parameters()]


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [VectorDopamine, NodeDopamine, Dopamine2])
def test_it_takes_the_steps_of_a_loop_of_ones_own(make: Any) -> None:
    net = classifier(optimizer=make, train_split=None, max_epochs=2, iterator_train__shuffle=False)
    net.fit(X, LABELS)
    torch.manual_seed(0)
    own = Network()
    optimizer, losses = make(own.parameters()), []
    for _ in range(2):
        for x, y in zip(torch.tensor(X).split(60), torch.tensor(LABELS).split(60), strict=True):
            losses.append(optimizer.step(lambda x=x, y=y: cross_entropy(own(x), y)))
    assert same(weights(net), [p.detach() for p in own.parameters()])
    seen = [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]
    assert seen == pytest.approx(losses, rel=1e-6)  # kept in float32
    assert net.optimizer_.forward_passes == optimizer.forward_passes


def test_the_rate_of_the_optimizer_is_its_own_unless_one_is_given() -> None:
    assert classifier().fit(X, LABELS).optimizer_.param_groups[0]["lr"] == 1.0
    given = classifier(lr=0.5).fit(X, LABELS)
    assert given.optimizer_.param_groups[0]["lr"] == 0.5
    prefixed = classifier(optimizer__lr=0.25).fit(X, LABELS)
    assert prefixed.optimizer_.param_groups[0]["lr"] == 0.25
    given.set_params(lr=2.0)  # also while it is fitted
    assert given.optimizer_.param_groups[0]["lr"] == 2.0


CRITERIA: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "cross-entropy": (ForwardClassifier, Network, LABELS, {"criterion": nn.CrossEntropyLoss}),
    "smoothed": (
        ForwardClassifier,
        Network,
        LABELS,
        {"criterion": nn.CrossEntropyLoss, "criterion__label_smoothing": 0.1},
    ),
    "weighted": (
        ForwardClassifier,
        Network,
        LABELS,
        {"criterion": nn.CrossEntropyLoss, "criterion__weight": torch.tensor([1.0, 3.0])},
    ),
    "probabilities": (ForwardClassifier, Probabilities, LABELS, {}),
    "squared error": (ForwardRegressor, Network, TARGETS, {"module__outputs": 1}),
    "absolute error": (
        ForwardRegressor,
        Network,
        TARGETS,
        {"module__outputs": 1, "criterion": nn.L1Loss},
    ),
    "sum": (
        ForwardRegressor,
        Network,
        TARGETS,
        {"module__outputs": 1, "criterion__reduction": "sum"},
    ),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_keeps_its_value_and_is_learned(name: str) -> None:
    kind, module, y, more = CRITERIA[name]
    torch.manual_seed(0)
    net = kind(
        module,
        optimizer=Dopamine2,
        max_epochs=40,
        batch_size=-1,
        verbose=0,
        train_split=None,
        **more,
    )
    net.initialize()
    with torch.no_grad():
        predicted = net.infer(torch.tensor(X))
        expected = net.get_loss(predicted, torch.tensor(y)).item()
    net.partial_fit(X, y)
    losses: Any = net.history[:, "train_loss"]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    assert net.criterion_.reduction == more.get("criterion__reduction", "mean")


def test_a_loss_of_ones_own_needs_no_slope() -> None:
    class Errors(ForwardClassifier):
        def compute_outcome(self, y_pred: Any, y_true: Any, X: Any) -> float:
            return float((y_pred.argmax(1) != y_true).float().mean())

    torch.manual_seed(0)
    net = Errors(
        Network,
        optimizer=EvolutionStrategy,
        optimizer__lr=0.1,
        optimizer__sigma=0.3,
        max_epochs=60,
        batch_size=-1,
        train_split=None,
        verbose=0,
    )
    net.fit(X, LABELS)
    losses: Any = net.history[:, "train_loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_users_override_is_what_is_trained() -> None:
    class Doubled(ForwardRegressor):
        def get_loss(self, y_pred: Any, y_true: Any, *args: Any, **kwargs: Any) -> Any:
            loss: Any = super().get_loss(y_pred, y_true, *args, **kwargs)
            return 2 * loss

    losses: list[Any] = []
    for kind in (ForwardRegressor, Doubled):
        torch.manual_seed(0)
        net = kind(Network, module__outputs=1, optimizer=Dopamine2, max_epochs=1, verbose=0)
        net.fit(X, TARGETS)
        losses.append(net.history[0, "train_loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


# ---- scikit-learn --------------------------------------------------------------------------------


def test_it_is_searched_over_in_a_pipeline() -> None:
    net = classifier(max_epochs=25, train_split=None)
    grid = {"forwardclassifier__optimizer__directions": [4, 20]}
    pipeline = make_pipeline(StandardScaler(), net)
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, LABELS)
    assert search.best_score_ > 0.7  # guessing: about 0.5
    assert search.best_estimator_[-1].optimizer_.settings["directions"] in (4, 20)
    again = GridSearchCV(pipeline, grid, cv=2)
    torch.manual_seed(0)
    first = again.fit(X, LABELS).cv_results_["mean_test_score"]
    torch.manual_seed(0)
    assert (again.fit(X, LABELS).cv_results_["mean_test_score"] == first).all()


def test_copies_and_pickles_go_on_alike() -> None:
    net = classifier().fit(X, LABELS)
    other = pickle.loads(pickle.dumps(net))
    assert (other.predict_proba(X) == net.predict_proba(X)).all()
    for one in (net, other):
        torch.manual_seed(5)
        one.partial_fit(X, LABELS)
    assert same(weights(net), weights(other))
    fresh: Any = clone(net)
    assert fresh.get_params()["optimizer"] is VectorDopamine
    assert fresh.get_params()["lr"] is None


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    always: Any = {"monitor": None}

    def run(epochs: int, *more: Any) -> Any:
        callbacks = [Checkpoint(dirname=str(tmp_path), **always), *more]
        net = classifier(
            module__dropout=0.2, train_split=None, max_epochs=epochs, callbacks=callbacks
        )
        return net.initialize()

    torch.manual_seed(1)
    net = run(3)
    net.partial_fit(X, LABELS)
    state = torch.get_rng_state()
    net.partial_fit(X, LABELS)
    whole = weights(net)

    torch.manual_seed(1)
    run(3).partial_fit(X, LABELS)  # what the checkpoint holds now
    load = LoadInitState(Checkpoint(dirname=str(tmp_path), **always))
    resumed = run(3, load)
    resumed.notify("on_train_begin", X=X, y=LABELS)
    torch.set_rng_state(state)
    resumed.fit_loop(X, LABELS)
    assert same(whole, weights(resumed))


def test_callbacks_hear_of_a_step_once() -> None:
    calls = []

    class Counter(skorch.callbacks.Callback):
        def on_batch_end(self, net: Any, training: bool, **_: Any) -> None:
            calls.append(training)

        def on_grad_computed(self, *_: Any, **__: Any) -> None:
            raise AssertionError

    schedule = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    scoring = EpochScoring("accuracy", on_train=True, name="train_accuracy", lower_is_better=False)
    net = classifier(max_epochs=3, callbacks=[Counter(), schedule, scoring])
    net.fit(X, LABELS)
    assert calls == [True, True, False] * 3
    assert net.optimizer_.param_groups[0]["lr"] == 0.125
    assert len(net.history[:, "train_accuracy"]) == 3


# ---- what is refused -----------------------------------------------------------------------------


def test_other_optimizers_and_fleets_are_refused() -> None:
    with pytest.raises(TypeError, match="optimizer must be one of dopaminergic, got SGD") as error:
        classifier(optimizer=torch.optim.SGD, lr=0.1).fit(X, LABELS)
    assert len(str(error.value)) <= 300
    with pytest.raises(ValueError, match=r"fleet|first dimension"):
        classifier(optimizer__seed=[0, 1]).fit(X, LABELS)


def test_targets_of_another_shape_are_refused() -> None:
    net = ForwardNet(Network, criterion=nn.MSELoss, module__outputs=1, verbose=0)
    with pytest.raises(ValueError, match="squared_error: prediction has shape"):
        net.fit(X, TARGETS[:, 0])
