"""The Markov chain: its sequences, its entropy, and what a network makes of it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from dopaminergic.lab.tasks import make_task
from dopaminergic.lab.tasks.markov import BALLS, Markov, make_urns, mean_entropy


def test_the_floor_is_the_entropy_of_all_sequences_by_enumeration() -> None:
    """H(x3, x4, x5 | x1, x2) / 3 over every sequence of five tokens and its number of ways, all
    equally likely.
    """
    urns = make_urns(3)
    ways = {(a, b): 1 for a in range(3) for b in range(3)}
    for _ in range(3):
        longer: Counter[tuple[int, ...]] = Counter()
        for sequence, count in ways.items():
            for ball in urns[sequence[-2], sequence[-1]].tolist():
                longer[(*sequence, ball)] += count
        ways = longer
    total = sum(ways.values())
    assert total == 9 * BALLS**3
    entropy = -sum(w / total * math.log(w / total) for w in ways.values()) - math.log(9)
    assert mean_entropy(urns, 3) == pytest.approx(entropy / 3, rel=1e-12)


def test_sequences_come_from_the_urns_as_often_as_they_should() -> None:
    task = Markov(tokens=4, batch_size=2000)
    inputs, targets = task.batch(5, 3)
    assert torch.equal(targets[:, :-1], inputs[:, 2:])
    firsts = (inputs[:, 0] * 4 + inputs[:, 1]).bincount(minlength=16)
    assert (firsts - 125).abs().max() < 5 * 125**0.5
    seen = torch.zeros(4, 4, 4)
    seen.index_put_((inputs[:, :-1], inputs[:, 1:], targets), torch.tensor(1.0), accumulate=True)
    chances = torch.nn.functional.one_hot(task.urns, 4).float().mean(-2)
    visits = seen.sum(-1, keepdim=True)
    assert visits.min() > 100
    assert not seen[chances == 0].any()
    assert ((seen / visits - chances).abs() <= 5 * (chances * (1 - chances) / visits).sqrt()).all()


def test_half_of_an_urn_depends_on_the_last_token_alone() -> None:
    urns = make_urns(6)
    assert (urns[:, :, : BALLS // 2] == urns[:1, :, : BALLS // 2]).all()
    for older in range(1, 6):
        assert not torch.equal(urns[older], urns[0])


def test_the_stages_of_learning_are_far_apart() -> None:
    """What a network can know: nothing, how often tokens come, what follows the last, what follows
    the last two.
    """
    task = Markov(batch_size=2000)
    inputs, targets = (
        torch.cat(parts) for parts in zip(*(task.batch(1, step) for step in range(10)), strict=True)
    )
    numbers = (inputs[:, :-1] * 12 + inputs[:, 1:]) * 12 + targets
    triples = (
        numbers.flatten().bincount(minlength=12**3).view(12, 12, 12).double() / numbers.numel()
    )

    def entropy(chances: torch.Tensor) -> float:
        return -torch.special.xlogy(chances, chances).sum().item()

    older = entropy(triples.sum((0, 1)))
    last = entropy(triples.sum(0)) - entropy(triples.sum((0, 2)))
    both = entropy(triples) - entropy(triples.sum(2))
    # 300,000 triples: estimates from counts are too low by about 0.001.
    assert [older, last] == pytest.approx([2.37, 1.74], abs=0.01)
    assert both == pytest.approx(task.loss_floor, abs=0.004)


def test_the_chain_itself_errs_by_the_floor_on_the_test_sequences() -> None:
    task = Markov()
    inputs, targets = task.test
    chances = torch.nn.functional.one_hot(task.urns, 12).double().mean(-2)
    losses = -chances[inputs[:, :-1], inputs[:, 1:], targets].log()
    error = losses.std().item() / losses.numel() ** 0.5
    assert task.loss_floor < math.log(BALLS)
    assert losses.mean().item() == pytest.approx(task.loss_floor, abs=4 * error)


def test_a_blind_network_errs_by_the_logarithm_of_the_tokens() -> None:
    task = make_task("markov-transformer", dtype="float64")
    model = task.build(0)
    with torch.no_grad():
        model.get_parameter("readout").zero_()
    assert task.evaluate(model)["cross_entropy"].item() == pytest.approx(math.log(12), rel=1e-12)


def test_the_chain_is_learned_by_backpropagation_beyond_what_the_last_token_tells() -> None:
    task = make_task("markov-transformer")
    model = task.build(100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(600):
        optimizer.zero_grad()
        task.outcome(model, task.batch(100, step)).mean().backward()
        optimizer.step()
    metrics = task.evaluate(model)
    assert task.loss_floor - 0.03 < metrics["cross_entropy"] < 1.45
    assert metrics["accuracy"] > 0.35


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 1}, "length: expected at least 2"),
        ({"tokens": 0}, "tokens: expected a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
    ],
)
def test_errors_say_what_was_expected(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_task("markov-transformer", **settings)
