"""Lightning without a backward pass: derive from `ForwardModule` instead of `LightningModule`.

    LightningModule:  training_step -> backward -> optimizer.step
    ForwardModule:    training_step -> probe(compute_outcome), optimizer.step

It is automatic optimization: Lightning steps schedules, accumulates batches and counts steps. An
evaluation calls `compute_outcome` and nothing else, and what it logs is heard once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome

try:
    from lightning.pytorch import LightningModule
except ImportError as error:
    raise ImportError(
        "dopaminergic.integrations.lightning needs lightning: pip install 'dopaminergic[lightning]'"
    ) from error


class ForwardModule(LightningModule):
    """A `LightningModule` whose steps are forward passes.

    A subclass names its `training_step` `compute_outcome`, and returns an optimizer of this library
    in `configure_optimizers`. All else stays: loggers, schedules, `accumulate_grad_batches`,
    checkpoints, callbacks, `bf16-mixed`.

    Attributes:
        perturbed: whether the present evaluation is a further one of its step. Metrics that add up,
            such as those of torchmetrics, belong under `if not self.perturbed`.
    """

    perturbed = False
    _evaluates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logged: list[tuple[Any, Any]] = []  # of the step that is under way

    # ---- for users -------------------------------------------------------------------------------

    def compute_outcome(self, batch: Any, batch_idx: int) -> Any:
        """The loss of a batch, or predictions with their losses; a dict has it under `"loss"`.

        It needs no derivative, and is called several times a step, without gradients. It takes the
        place of `training_step`.

        Args:
            batch: from the loader, on the module's device.
            batch_idx: its number in the epoch.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.compute_outcome is missing: name your training_step so, and "
            "let it return the loss, or squared_error(prediction, target)"
        )

    # ---- what Lightning calls --------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Evaluate at perturbed weights; `optimizer_step` follows.

        Returns:
            The loss of all batches of a step at the last of them, and 0 before.
        """
        optimizer = self._checked_optimizer()
        accumulated = self.trainer.accumulate_grad_batches
        if batch_idx % accumulated == 0:
            optimizer.zero_grad()  # what a step that was broken off has left
            self._logged = []
        is_last = (batch_idx + 1) % accumulated == 0 or self.trainer.is_last_batch
        loss = optimizer.probe(self._evaluation(batch, batch_idx), more=not is_last)
        logged, self._logged = self._logged, []
        for args, kwargs in logged:
            super().log(*args, **kwargs)
        # Lightning divides by the number of batches, since it adds gradients.
        mean = 0.0 if loss is None else loss * accumulated
        return torch.tensor(mean, dtype=torch.float32, device=self.device)

    def backward(self, *_: Any, **__: Any) -> None:
        """There is nothing to differentiate."""

    def optimizer_zero_grad(self, *_: Any, **__: Any) -> None:
        """Lightning comes here after the first batch of a step, which must not be forgotten."""

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Run the training step once, and then the optimizer."""
        stepper = _AfterClosure(optimizer.optimizer)
        self.trainer.strategy.optimizer_step(stepper, optimizer_closure)  # pyright: ignore[reportArgumentType]

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; in evaluations, for the first one of a step, once it is over."""
        if not self._evaluates:
            super().log(*args, **kwargs)
        elif not self.perturbed:
            self._logged.append((args, kwargs))

    # ---- inside ----------------------------------------------------------------------------------

    def _evaluation(self, batch: Any, batch_idx: int) -> Callable[[], Any]:
        called = False

        def evaluate() -> float | Tensor | Outcome:
            nonlocal called
            self._evaluates, self.perturbed, called = True, called, True
            try:
                found = self.compute_outcome(batch, batch_idx)
            finally:
                self._evaluates = self.perturbed = False
            return found["loss"] if isinstance(found, Mapping) else found

        return evaluate

    def _checked_optimizer(self) -> ForwardOptimizer:
        name = type(self).__name__
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, ForwardOptimizer):
            raise TypeError(
                f"{name}: configure_optimizers must return one optimizer of dopaminergic, got "
                f"{type(optimizer).__name__}; for example Dopamine2(self.parameters())"
            )
        if isinstance(optimizer.settings["seed"], list):
            raise ValueError(
                f"{name}: it trains one model, and the optimizer has the seeds of a fleet; give it "
                "one seed"
            )
        self._refuse_gradients(name)
        return optimizer

    def _refuse_gradients(self, name: str) -> None:
        trainer = self.trainer
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                f"{name}: precision='16-mixed' scales gradients, and there are none; use "
                "'bf16-mixed', or '16-true' for weights of 16 bits"
            )
        if trainer.gradient_clip_val:
            raise ValueError(
                f"{name}: gradient_clip_val={trainer.gradient_clip_val} clips gradients, and there "
                "are none; leave it out (the rules bound their steps by cap)"
            )
        if trainer.world_size > 1:
            raise ValueError(
                f"{name}: Lightning's strategies for several devices exchange gradients, and there "
                "are none; use devices=1, or Ranks() in a loop of your own under torchrun"
            )


class _AfterClosure:
    """An optimizer as Lightning steps it: its closure runs once, and has probed then."""

    def __init__(self, optimizer: ForwardOptimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self, closure: Callable[[], Any], **_: Any) -> Any:
        loss = closure()
        self.optimizer.step()
        return loss
