"""Hugging Face's Trainer without a backward pass: take `ForwardTrainer` instead of `Trainer`.

    Trainer:          training_step -> compute_loss -> backward;  optimizer.step
    ForwardTrainer:   training_step -> probe(compute_outcome);    optimizer.step

All else is the Trainer's: data, evaluation, callbacks, checkpoints, resuming, logging.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dopaminergic.integrations.logging import numbers
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import Outcome

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "dopaminergic.integrations.transformers needs transformers and accelerate: pip install "
        "'dopaminergic[transformers]'"
    ) from error


class ForwardTrainer(Trainer):
    """A `transformers.Trainer` whose steps are forward passes.

    Its arguments are those of `Trainer`. The optimizer is one of this library, given as
    `optimizers=(Dopamine2(model.parameters()), None)`, or as
    `optimizer_cls_and_kwargs=(Dopamine2, {})`.

    - `gradient_accumulation_steps` joins micro-batches: a step is that of the whole batch.
    - The learning rate stays constant, after a warm-up if there is one, unless
      `lr_scheduler_type` names something else than the Trainer's default, `"linear"`. That one
      would take a rate that the rules find by themselves to 0.
    - `loss`, `rpe`, `effective_learning_rate`, `forward_passes` and `skipped_steps` are logged.
      There is no `grad_norm`.
    - `bf16=True`, LoRA and frozen weights need nothing more.

    Raises:
        ValueError: it was asked for something that needs gradients. That is `fp16=True`, which
            scales them, DeepSpeed, which keeps them, or an optimizer that follows them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.fp16:
            raise ValueError(
                "ForwardTrainer: fp16=True scales gradients, and there are none; use bf16=True, or "
                "load the model in 16 bits (dtype=torch.float16)"
            )
        if self.args.deepspeed is not None or self.is_deepspeed_enabled:
            raise ValueError(
                "ForwardTrainer: DeepSpeed runs backward passes and optimizers of its own, and "
                "there are none here; leave deepspeed out (a step needs no more memory than "
                "inference)"
            )
        if self.optimizer is not None:
            _check(self.optimizer)
        self._items: Any = None  # those of the micro-batch that is evaluated
        self._parts: Iterator[tuple[Any, float]] = iter(())

    # ---- for users -------------------------------------------------------------------------------

    def compute_outcome(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> float | torch.Tensor | Outcome:
        """The loss of one micro-batch, or predictions with their losses; override it at will.

        It needs no derivative. For example, return the share of errors, a reward, or for
        `VectorDopamine` all predictions: `cross_entropy(model(**inputs).logits, labels)`. Losses of
        samples are joined over micro-batches. Lone numbers are averaged, each by its number of
        labels. By default it is what `compute_loss` says.

        Args:
            model: in training mode, and maybe wrapped for autocast.
            inputs: a copy of the batch, on the model's device.
        """
        loss: Any = self.compute_loss(model, inputs, num_items_in_batch=self._items)
        return loss

    # ---- what the Trainer calls ------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's, which must have made one of this library."""
        optimizer = super().create_optimizer(*args, **kwargs)
        _check(optimizer)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; but a constant rate in the place of the default, a linear decay."""
        given = self.args.lr_scheduler_type
        if given == "linear":
            self.args.lr_scheduler_type = type(given)("constant_with_warmup")
        try:
            return super().create_scheduler(*args, **kwargs)
        finally:
            self.args.lr_scheduler_type = given

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of the next step; those of a step that was broken off are forgotten."""
        self._forward_optimizer.zero_grad()
        take = super().get_batch_samples
        samples, items = take(epoch_iterator, num_batches, device)
        counts = [items] if len(samples) == 1 else [take(iter([x]), 1, device)[1] for x in samples]
        self._parts = zip(counts, _shares(counts), strict=True)
        return samples, items

    def training_step(
        self, model: torch.nn.Module, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Evaluate the model at perturbed weights; the Trainer's `optimizer.step()` follows.

        Returns:
            The loss of all micro-batches at the last of them, and 0 before.
        """
        model.train()
        prepared = self._prepare_inputs(inputs)  # pyright: ignore[reportArgumentType]
        closure = functools.partial(self._evaluate_part, model, prepared, *next(self._parts))
        more = not self.accelerator.sync_gradients
        loss = self._forward_optimizer.probe(closure, more=more)
        mean = 0.0 if loss is None else loss
        return torch.tensor(mean, dtype=torch.float32, device=self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's, with the optimizer's numbers beside the loss."""
        if "loss" in logs:
            kept = {name: value for name, value in logs.items() if name != "grad_norm"}
            logs = {**kept, **numbers(self._forward_optimizer)}
            del logs["step"]
        super().log(logs, *args, **kwargs)

    # ---- inside ----------------------------------------------------------------------------------

    def _evaluate_part(
        self, model: torch.nn.Module, inputs: Mapping[str, Any], items: Any, share: float
    ) -> Any:
        self._items = items
        found: Any = self.compute_outcome(model, {**inputs})  # `compute_loss` takes labels out
        if isinstance(found, Outcome) or getattr(found, "ndim", 0) or share == 1.0:
            return found
        return found * share

    @property
    def _forward_optimizer(self) -> ForwardOptimizer:
        """The optimizer itself; accelerate's wrapper has no `probe`."""
        return _unwrapped(self.optimizer)


def _shares(counts: list[Any]) -> list[float]:
    """How much each micro-batch counts in their mean, by its number of labels."""
    if any(count is None for count in counts):
        return [1.0] * len(counts)
    labels = [
        float(torch.as_tensor(count, dtype=torch.float32, device="cpu").mean()) for count in counts
    ]
    return [n * len(labels) / sum(labels) if sum(labels) else 1.0 for n in labels]


def _unwrapped(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def _check(optimizer: Any) -> None:
    optimizer = _unwrapped(optimizer)
    if not isinstance(optimizer, ForwardOptimizer):
        raise ValueError(
            f"ForwardTrainer: the optimizer must be one of dopaminergic, got "
            f"{type(optimizer).__name__}; pass optimizers=(Dopamine2(model.parameters()), None) or "
            "optimizer_cls_and_kwargs=(Dopamine2, {})"
        )
    if isinstance(optimizer.settings["seed"], list):
        raise ValueError(
            "ForwardTrainer: it trains one model, and this optimizer has the seeds of a fleet; "
            "give it one seed"
        )
