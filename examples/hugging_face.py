"""Hugging Face's Trainer without a backward pass: an untrained BERT learns which words please."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from dopaminergic import VectorDopamine, cross_entropy
from dopaminergic.integrations.transformers import ForwardTrainer

WORDS = torch.randint(1, 20, (400, 6), generator=torch.Generator().manual_seed(0))
LABELS = (WORDS < 10).sum(1).ge(3).long()  # words below 10 please
SENTENCES = [{"input_ids": x, "labels": y} for x, y in zip(WORDS, LABELS, strict=True)]
SIZES: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Predicting(ForwardTrainer):
    """It learns from all predictions; without this class, from the loss alone."""

    def compute_outcome(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The logits, with their losses."""
        labels = inputs.pop("labels")
        return cross_entropy(model(**inputs).logits, labels)


def train(folder: str, epochs: int, checkpoint: str | None = None) -> Any:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, intermediate_size=32, **SIZES))
    settings: Any = dict.fromkeys(["eval_strategy", "save_strategy", "logging_strategy"], "epoch")
    settings |= {"per_device_train_batch_size": 75, "gradient_accumulation_steps": 2}
    settings |= {"disable_tqdm": True, "report_to": "none", "use_cpu": True}
    trainer = Predicting(
        model=model,
        args=TrainingArguments(folder, num_train_epochs=epochs, **settings),
        train_dataset=SENTENCES[:300],
        eval_dataset=SENTENCES[300:],
        compute_metrics=lambda e: {"accuracy": (e.predictions.argmax(1) == e.label_ids).mean()},
        optimizers=(VectorDopamine(model.parameters()), None),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16, help="epochs, of two steps each (16)")
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as folder:
        whole = train(folder, epochs)
        resumed = train(folder, epochs, f"{folder}/checkpoint-{2 * (epochs // 2)}")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    print("resumed half-way: bit for bit the same:", all(torch.equal(p, q) for p, q in pairs))


if __name__ == "__main__":
    main()
