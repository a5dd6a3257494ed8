"""The models that steps are measured on: from 33 weights to 10 million, each with its loss on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Forecaster(nn.Module):
    """`nn.RNN` 3-32-3 that predicts the next of 50 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = nn.RNN(3, 32, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.cell(x)[0])


class Transformer(nn.Module):
    """Causal language model, about 10 million weights: 3 layers of width 512, 1,000 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 512)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(512, 1000)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens)))


def xor() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    inputs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return model, inputs, torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def rnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return Forecaster(), torch.randn(8, 50, 3), torch.randn(8, 50, 3)


def perceptron() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return model, torch.randn(64, 784), torch.randint(10, (64,))


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1000, (4, 64))
    return Transformer(), tokens, tokens.roll(-1, 1)


MODELS = {
    "xor 2-8-1": xor,
    "rnn 3-32-3": rnn,
    "mlp 784-512-512-10": perceptron,
    "transformer 10M": transformer,
}


def build(name: str) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A model of `MODELS` and its loss on a fixed batch."""
    torch.manual_seed(0)
    model, inputs, target = MODELS[name]()

    def loss() -> torch.Tensor:
        output = model(inputs)
        if target.is_floating_point():
            return functional.mse_loss(output, target)
        return functional.cross_entropy(output.flatten(0, -2), target.flatten())

    return model, loss
