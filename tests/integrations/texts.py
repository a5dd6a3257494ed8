"""Small made-up sentences and untrained models for them; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

# transformers is imported in functions, since pytest reads this file where it is absent too.

WORDS = 20  # 0 pads, 1 to 9 please, 10 to 19 do not


class Sentences(Dataset):
    """Sentences of 6 words, and whether at least 3 of them please."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, WORDS, (count, 6), generator=generator)
        self.labels = (self.words < 10).sum(1).ge(3).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[i], "labels": self.labels[i]}


class Texts(Sentences):
    """Words to go on with; positions of -100 are not scored, in some texts more than in others."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        labels = self.words[i].clone()
        labels[2 + i % 4 :] = -100
        return {"input_ids": self.words[i], "labels": labels}


def classifier(dropout: float = 0.0) -> Any:
    """A BERT of 3,042 weights."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_labels": 2}
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **sizes,
    )
    return transformers.BertForSequenceClassification(config)


def writer() -> Any:
    """A GPT-2 of one layer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def settings(folder: Any, **more: Any) -> Any:
    """What all runs share: the CPU, and no reports."""
    import transformers

    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return transformers.TrainingArguments(**{**given, **more})


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]
