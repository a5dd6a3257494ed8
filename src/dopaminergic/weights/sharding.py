"""Parameters of which a rank holds a part, and the place of that part in the whole.

FSDP2 and other users of DTensor split a parameter by rows, `Shard(0)`: each rank holds a contiguous
range of the flat parameter. Noise is a function of the element's index in the whole, so a rank
makes that of its own range, and nothing travels.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def is_sharded(p: Tensor) -> bool:
    """Whether a parameter is a DTensor.

    The type itself is not asked for, since its import takes long.
    """
    return hasattr(p, "placements")


def local(p: Tensor) -> Tensor:
    """The part of a parameter that this rank holds, without gradients; in the same memory."""
    held: Any = p.detach()
    return held.to_local() if is_sharded(p) else held


def parts(p: Any) -> int:
    """The number of ranges of rows into which a parameter is split."""
    if not is_sharded(p):
        return 1
    return math.prod(
        p.device_mesh.size(d) for d, place in enumerate(p.placements) if not place.is_replicate()
    )


def first_element(p: Any) -> int:
    """Index, in the whole flat parameter, of the first element that this rank holds.

    Raises:
        ValueError: the parameter is placed in a way that is not a range of rows.
    """
    if not is_sharded(p):
        return 0
    shards = [d for d, placement in enumerate(p.placements) if not placement.is_replicate()]
    if not shards:
        return 0
    [place, *others] = [p.placements[d] for d in shards]
    if others or type(place).__name__ != "Shard" or place.dim != 0:
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is placed as {p.placements}: only Replicate() "
            "and one Shard(0) can be perturbed, of which a rank holds a range of rows; shard by "
            "rows, as fully_shard does by default"
        )
    ranks = p.device_mesh.size(shards[0])
    own = p.device_mesh.get_local_rank(shards[0])
    rows = math.ceil(p.shape[0] / ranks)  # as torch.chunk: the last ranks may hold fewer, or none
    return min(own * rows, p.shape[0]) * math.prod(p.shape[1:])
