"""skorch without a backward pass: networks as estimators of scikit-learn.

    ForwardClassifier  for  NeuralNetClassifier
    ForwardRegressor   for  NeuralNetRegressor
    ForwardNet         for  NeuralNet

They work inside pipelines and `GridSearchCV`, which may search over `optimizer__sigma`, say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome, cross_entropy, squared_error
from dopaminergic.vector import VectorDopamine

try:
    from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
    from skorch.dataset import unpack_data
    from skorch.utils import to_tensor
except ImportError as error:
    raise ImportError(
        "dopaminergic.integrations.skorch needs skorch: pip install 'dopaminergic[skorch]'"
    ) from error


class ForwardNet(NeuralNet):
    """A `skorch.NeuralNet` whose steps are forward passes.

    Args:
        module: as of `NeuralNet`, as all else.
        optimizer: a class of this library.
        lr: of the optimizer; None leaves it to the optimizer. skorch's own default, 0.01, would be
            no rate of these rules.
    """

    def __init__(
        self,
        module: Any,
        *args: Any,
        optimizer: Any = VectorDopamine,
        lr: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, optimizer=optimizer, lr=lr, **kwargs)

    def compute_outcome(self, y_pred: Any, y_true: Any, X: Any) -> float | Tensor | Outcome:
        """The loss of a batch, or predictions with their losses; override it at will.

        It needs no derivative. By default it is what `get_loss` says, with as much of it as can be
        known: predictions for `nn.MSELoss` and `nn.CrossEntropyLoss`, and for other criteria the
        losses of samples.

        Args:
            y_pred: what the module returned.
            y_true: targets.
            X: inputs.
        """
        criterion = self.criterion_
        stock = (NeuralNet.get_loss, NeuralNetClassifier.get_loss)
        if type(self).get_loss in stock and getattr(criterion, "reduction", "") == "mean":
            found = self._in_full(criterion, y_pred, y_true)
            if found is not None:
                return found
        return self.get_loss(y_pred, y_true, X=X, training=True)

    def _in_full(self, criterion: Any, y_pred: Any, y_true: Any) -> Tensor | Outcome | None:
        """Predictions or losses of samples; None where the criterion is no plain mean of them."""
        if getattr(criterion, "weight", None) is not None or not isinstance(y_pred, Tensor):
            return None
        target: Any = to_tensor(y_true, device=self.device)
        if type(criterion) is nn.MSELoss:
            return squared_error(y_pred, target)
        is_plain = type(criterion) is nn.CrossEntropyLoss and not criterion.label_smoothing
        if is_plain and y_pred.ndim == 2 and not target.is_floating_point():
            return cross_entropy(y_pred, target)
        ignored = getattr(criterion, "ignore_index", None)
        if ignored is not None and bool((target == ignored).any()):
            return None
        try:
            criterion.reduction = "none"
            losses = self.get_loss(y_pred, y_true)
        finally:
            criterion.reduction = "mean"
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses

    # ---- what skorch calls -----------------------------------------------------------------------

    def get_params_for_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Those of skorch, without a rate if none was given."""
        positional, named = super().get_params_for_optimizer(*args, **kwargs)
        if named.get("lr") is None:
            named.pop("lr", None)
        return positional, named

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """That of skorch, which must have made one of this library."""
        made = super().initialize_optimizer(*args, **kwargs)
        for name in self._optimizers:
            optimizer = getattr(self, name + "_")
            if not isinstance(optimizer, ForwardOptimizer):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be one of dopaminergic, got "
                    f"{type(optimizer).__name__}; for example optimizer=Dopamine2, or take a net "
                    "of skorch itself"
                )
            if isinstance(optimizer.settings["seed"], list):
                raise ValueError(
                    f"{type(self).__name__}: it trains one module, and {name}__seed holds the "
                    "seeds of a fleet; give it one seed"
                )
        return made

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """One step of the optimizer.

        Returns:
            The loss, and the predictions of its first evaluation.
        """
        self._set_training(True)
        X, y_true = unpack_data(batch)
        first: list[Any] = []

        def closure() -> Any:
            y_pred = self.infer(X, **fit_params)
            if not first:
                first.append(y_pred)
            return self.compute_outcome(y_pred, y_true, X)

        loss: Any = None
        for name in self._optimizers:
            loss = getattr(self, name + "_").step(closure)
        return {
            "loss": torch.tensor(loss, dtype=torch.float32, device="cpu"),
            "y_pred": first[0],
        }


class ForwardClassifier(ForwardNet, NeuralNetClassifier):
    """A `skorch.NeuralNetClassifier` whose steps are forward passes; see `ForwardNet`."""


class ForwardRegressor(ForwardNet, NeuralNetRegressor):
    """A `skorch.NeuralNetRegressor` whose steps are forward passes; see `ForwardNet`."""
