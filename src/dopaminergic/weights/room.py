"""How far weights can still move before they leave the range of their dtype.

Before each update the library asks whether every weight stays finite. A look at the weights
themselves, one pass, is needed only where they may have come near the largest number. For example,
float16 ends at 65504.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dopaminergic.noise import Multiple, Term
from dopaminergic.weights.layout import Block
from dopaminergic.weights.sharding import local

NORMAL_MOST = 6.7  # the largest normal number that 32 bits give, sqrt(64 ln 2)


class Room:
    """The distance of the weights from the largest numbers of their dtypes.

    Args:
        blocks: the weights.
        replicas: of which they hold one or more.
        kind: of the noise.
    """

    def __init__(self, blocks: list[Block], replicas: int, kind: str) -> None:
        self._blocks = blocks
        self._replicas = replicas
        self._most = NORMAL_MOST if kind == "gaussian" else 1.0  # the largest entry of a direction
        # How far any weight can still move before its dtype must be looked at.
        least = min((torch.finfo(p.dtype).max for b in blocks for p in b.parameters), default=0.0)
        self._left = least * 2.0**-10

    def takes_one(self, move: float) -> bool:
        """`takes` of one model's update along one direction, in less time."""
        farthest = self._most * abs(move)
        if farthest < self._left:
            self._left -= farthest
            return True
        return bool(np.all(self.takes([(0, [move])], None)))

    def takes(self, terms: list[Term], scales: list[Multiple] | None) -> Any:
        """Whether an update leaves every weight finite.

        Returns:
            A bool, or bools `(R,)` where replicas differ.
        """
        sound: Any = True
        for scale in scales or ():
            sound = sound & np.isfinite(scale)
        groups = range(len(terms[0][1])) if terms else ()
        moves = [self._most * sum(np.abs(multiples[g]) for _, multiples in terms) for g in groups]
        farthest = max((float(np.max(move)) for move in moves), default=0.0)
        if farthest < self._left:
            self._left -= farthest
            return sound
        return sound & self._takes_beside_weights(moves)

    def _takes_beside_weights(self, moves: list[Any]) -> Any:
        sound: Any = True
        room = math.inf
        for group, parameters, _ in self._blocks:
            limit = torch.finfo(parameters[0].dtype).max
            for p in parameters:
                held = local(p).reshape(self._replicas, -1)
                if held.shape[1] == 0:
                    continue
                least, greatest = (x.double().cpu().numpy() for x in torch.aminmax(held, dim=1))
                farthest = moves[group] if moves else 0.0
                reached = np.maximum(-least, greatest) + farthest
                sound = sound & (reached < limit * (1.0 - 2.0**-10))
                room = min(room, float(np.min(limit - reached)) / 2)
        if np.all(sound):
            self._left = max(0.0, room) if math.isfinite(room) else 0.0
        return sound
