"""Hugging Face's Trainer, run for real on untrained models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers
from texts import Sentences, Texts, classifier, settings, weights, writer

from dopaminergic import (
    Dopamine,
    Dopamine2,
    EvolutionStrategy,
    NodeDopamine,
    VectorDopamine,
    cross_entropy,
)
from dopaminergic.integrations.transformers import ForwardTrainer
from optimizers import same


def trainer_of(
    model: Any, folder: Path, optimizer: Any = None, *, kind: Any = ForwardTrainer, **more: Any
) -> Any:
    """A trainer on 40 sentences; `more` goes to its settings."""
    given = {name: more.pop(name) for name in ("callbacks", "compute_metrics") if name in more}
    data = more.pop("data", Sentences(40))
    optimizer = optimizer or Dopamine2(model.parameters())
    return kind(
        model=model,
        args=settings(folder, **more),
        train_dataset=data,
        eval_dataset=Sentences(16, seed=1),
        optimizers=(optimizer, None),
        **given,
    )


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Errors(ForwardTrainer):
    """Trains on the share of errors, which has no slope."""

    def compute_outcome(self, model: Any, inputs: dict[str, Any]) -> float:
        labels = inputs.pop("labels")
        return float((model(**inputs).logits.argmax(1) != labels).float().mean())


class Predictions(ForwardTrainer):
    def compute_outcome(self, model: Any, inputs: dict[str, Any]) -> Any:
        labels = inputs.pop("labels")
        return cross_entropy(model(**inputs).logits, labels)


# ---- training ------------------------------------------------------------------------------------


def test_it_takes_the_steps_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, own = classifier(), classifier().train()
    trainer = trainer_of(model, tmp_path, num_train_epochs=2, train_sampling_strategy="sequential")
    trainer.train()

    optimizer, data, losses = Dopamine2(own.parameters()), Sentences(40), []
    for _ in range(2):
        for words, labels in zip(data.words.split(8), data.labels.split(8), strict=True):
            losses.append(optimizer.step(lambda x=words, y=labels: own(input_ids=x, labels=y).loss))
    assert same(weights(model), weights(own))
    assert logged(trainer) == losses
    assert logged(trainer, "forward_passes") == [2 * (i + 1) for i in range(10)]
    assert trainer.optimizer.optimizer.forward_passes == optimizer.forward_passes


def test_no_graph_is_recorded(tmp_path: Path) -> None:
    seen = []

    class Watched(ForwardTrainer):
        def compute_outcome(self, model: Any, inputs: dict[str, Any]) -> Any:
            loss: Any = super().compute_outcome(model, inputs)
            seen.append((torch.is_grad_enabled(), loss.requires_grad, model.training))
            return loss

    model = classifier()
    trainer_of(model, tmp_path, kind=Watched, max_steps=3).train()
    assert seen == [(False, False, True)] * 6
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("make", "data"), [(classifier, Sentences), (writer, Texts)])
@pytest.mark.parametrize(("batch", "steps"), [(4, 2), (3, 3)])
def test_micro_batches_are_the_whole_batch(
    tmp_path: Path, make: Any, data: Any, batch: int, steps: int
) -> None:
    """The last step has fewer samples, and texts have other numbers of words that are scored."""
    runs = []
    for size, accumulation in ((batch * steps, 1), (batch, steps)):
        model = make().double()
        trainer = trainer_of(
            model,
            tmp_path,
            data=data(43),
            num_train_epochs=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        runs.append((logged(trainer), logged(trainer, "forward_passes"), weights(model)))
    (losses, passes, whole), (other_losses, other_passes, parts) = runs
    assert passes == other_passes == [2 * (i + 1) for i in range(len(losses))]
    assert other_losses == pytest.approx(losses, rel=2e-7)  # the Trainer keeps them in float32
    pairs = zip(whole, parts, strict=True)
    # Regrets are of the size of sigma, 0.001, and have the rounding of a loss. That of a text is
    # taken in float32.
    rounding = 1e-10 if make is classifier else 1e-6
    assert max((p - q).abs().max().item() for p, q in pairs) < rounding


def test_it_learns_what_no_gradient_reaches(tmp_path: Path) -> None:
    model = classifier()
    optimizer = EvolutionStrategy(model.parameters(), lr=0.1, sigma=0.1, directions=8)
    trainer = trainer_of(
        model,
        tmp_path,
        optimizer,
        kind=Errors,
        data=Sentences(256),
        max_steps=60,
        per_device_train_batch_size=128,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    losses = logged(trainer)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    assert logged(trainer, "forward_passes")[-1] == 60 * 16


def test_vector_dopamine_learns_from_predictions(tmp_path: Path) -> None:
    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}

    model = classifier()
    trainer = trainer_of(
        model,
        tmp_path,
        VectorDopamine(model.parameters()),
        kind=Predictions,
        data=Sentences(256),
        max_steps=12,
        per_device_train_batch_size=128,
        gradient_accumulation_steps=2,
        compute_metrics=accuracy,
        eval_strategy="steps",
        eval_steps=6,
    )
    trainer.train()
    assert logged(trainer)[-1] < 0.6 * logged(trainer)[0]
    assert len(logged(trainer, "eval_accuracy")) == 2
    assert logged(trainer, "eval_loss")[-1] < logged(trainer, "eval_loss")[0]


# ---- logs, schedules, callbacks ------------------------------------------------------------------


def test_the_optimizers_numbers_are_logged_and_no_gradient_norm(tmp_path: Path) -> None:
    model = classifier()
    trainer = trainer_of(model, tmp_path, max_steps=4, logging_steps=2, eval_strategy="epoch")
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    *_, last = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert last["step"] == 4
    assert last["rpe"] == optimizer.last_rpe != 0.0
    assert last["effective_learning_rate"] == optimizer.last_learning_rate > 0.0
    assert last["forward_passes"] == 8
    assert last["skipped_steps"] == 0
    assert not logged(trainer, "grad_norm")
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated
    assert "rpe" not in evaluated[0]


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({}, [1.5] * 4),
        ({"warmup_steps": 3}, [0.0, 0.5, 1.0, 1.5]),
        ({"lr_scheduler_type": "polynomial"}, [1.5, 1.125, 0.75, 0.375]),
    ],
)
def test_the_rate_is_constant_unless_a_schedule_is_asked_for(
    tmp_path: Path, given: dict[str, Any], rates: list[float]
) -> None:
    trainer = trainer_of(classifier(), tmp_path, max_steps=4, **given)
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx(rates, abs=1e-6)
    assert trainer.args.lr_scheduler_type == given.get("lr_scheduler_type", "linear")


def test_a_linear_schedule_can_be_given(tmp_path: Path) -> None:
    model = classifier()
    optimizer = Dopamine2(model.parameters())
    trainer = trainer_of(model, tmp_path, optimizer, max_steps=4)
    trainer.lr_scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, 4)
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([1.5, 1.125, 0.75, 0.375])


class Stop(transformers.TrainerCallback):
    """Counts hooks, and breaks the second step off between its micro-batches."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.calls.append("step")

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.calls.append("before")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.calls.append("part")
        control.should_training_stop = state.global_step == 1


def test_a_step_that_is_broken_off_leaves_no_micro_batches(tmp_path: Path) -> None:
    model, stop = classifier(), Stop()
    trainer = trainer_of(
        model, tmp_path, callbacks=[stop], max_steps=5, gradient_accumulation_steps=2
    )
    trainer.train()
    assert stop.calls == ["part", "before", "step", "part"]
    stop.calls.clear()
    trainer.remove_callback(stop)
    trainer.train()  # anew, on whole steps
    assert trainer.optimizer.optimizer.forward_passes == 2 + 10


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Dopamine, Dopamine2, VectorDopamine])
def test_a_run_that_is_resumed_ends_at_the_same_bits(tmp_path: Path, make: Any) -> None:
    """Also in the middle of an epoch, with dropout, micro-batches and a schedule."""

    def run(folder: Path, resume: Any = None, **more: Any) -> tuple[list[Tensor], list[float]]:
        model = classifier(dropout=0.1)
        trainer = trainer_of(
            model,
            folder,
            make(model.parameters()),
            num_train_epochs=3,
            gradient_accumulation_steps=2,
            lr_scheduler_type="cosine",
            save_strategy="steps",
            save_steps=4,
            kind=Predictions,
            **more,
        )
        trainer.train(resume_from_checkpoint=resume)
        return weights(model), logged(trainer)

    whole, losses = run(tmp_path / "whole")
    resumed, seen = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-4"))
    assert len(losses) == 9
    assert seen == losses
    assert same(whole, resumed)


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = classifier()
    trainer = trainer_of(
        model,
        tmp_path,
        Dopamine(model.parameters(), lr=30.0),  # it goes too far
        num_train_epochs=4,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(logged(trainer, "eval_loss")))


# ---- what models may be --------------------------------------------------------------------------


def test_lora_trains_its_adapters_alone(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(classifier(), config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tmp_path, max_steps=4, save_strategy="steps", save_steps=4)
    trainer.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in moved if "lora_" in name}
    saved = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in saved


def test_bf16_computes_in_bfloat16_and_steps_farther(tmp_path: Path) -> None:
    model = classifier()
    trainer = trainer_of(model, tmp_path, max_steps=2, bf16=True)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert optimizer.param_groups[0]["sigma"] == Dopamine2.default_sigmas[1]


def test_weights_of_16_bits_train(tmp_path: Path) -> None:
    model = classifier().bfloat16()
    before = weights(model)
    trainer_of(model, tmp_path, max_steps=2).train()
    assert not same(before, weights(model))


def test_a_class_and_its_settings_serve_as_an_optimizer(tmp_path: Path) -> None:
    trainer: Any = ForwardTrainer(
        model_init=lambda: classifier(),
        args=settings(tmp_path, max_steps=2, weight_decay=0.01),
        train_dataset=Sentences(16),
        optimizer_cls_and_kwargs=(Dopamine2, {"directions": 2}),
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert optimizer.forward_passes == 2 * 3


def test_label_smoothing_finds_its_labels_in_each_evaluation(tmp_path: Path) -> None:
    trainer = trainer_of(classifier(), tmp_path, max_steps=2, label_smoothing_factor=0.1)
    trainer.train()
    assert len(logged(trainer)) == 2


# ---- what is refused -----------------------------------------------------------------------------


def test_loss_scaling_is_refused(tmp_path: Path) -> None:
    model, args = classifier(), settings(tmp_path)
    args.fp16 = True  # which transformers itself refuses without a GPU
    with pytest.raises(ValueError, match=r"ForwardTrainer: fp16=True .*bf16=True") as error:
        ForwardTrainer(model=model, args=args, optimizers=(Dopamine2(model.parameters()), None))
    assert len(str(error.value)) <= 300


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    model, args = classifier(), settings(tmp_path)
    args.deepspeed = {"zero_optimization": {"stage": 2}}  # as if the package were there
    with pytest.raises(
        ValueError, match=r"ForwardTrainer: DeepSpeed .*leave deepspeed out"
    ) as error:
        ForwardTrainer(model=model, args=args, optimizers=(Dopamine2(model.parameters()), None))
    assert len(str(error.value)) <= 300


def test_other_optimizers_and_fleets_are_refused(tmp_path: Path) -> None:
    model = classifier()
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match="must be one of dopaminergic, got Adam; pass") as error:
        trainer_of(model, tmp_path, adam)
    assert len(str(error.value)) <= 300
    default = ForwardTrainer(
        model=model, args=settings(tmp_path, max_steps=1), train_dataset=Sentences(8)
    )
    with pytest.raises(ValueError, match="must be one of dopaminergic, got AdamW; pass"):
        default.train()
    stacked = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match="trains one model, and this optimizer has the seeds"):
        trainer_of(model, tmp_path, Dopamine2([stacked], seed=[0, 1]))


def test_micro_batches_of_activities_are_refused(tmp_path: Path) -> None:
    model = classifier()
    trainer = trainer_of(
        model, tmp_path, NodeDopamine(model), max_steps=1, gradient_accumulation_steps=2
    )
    with pytest.raises(ValueError, match=r"NodeDopamine: probe\(more=True\) is not supported"):
        trainer.train()
