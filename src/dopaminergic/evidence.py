"""The weight decay that the noise of a batch asks for.

    L(W) + rho |W|^2 / 2,   rho = min(2 v F / |W|^2, tr A / tr <D Z, D Z>),   v = noise / g.c

MacKay (1992) sets a decay to gamma s^2 / |W|^2: each of gamma effective parameters fits noise of
the variance s^2. Here F stands for gamma s^2: the part of the loss that K directions fit by chance.
Of n squares it is 2 K L / (n - K), if all that is left is noise (Foresee and Hagan 1997). Of a
cross-entropy it is K / N. It is no more than the loss that is left. Of other losses it is noise =
tr(M^-1 C), as in Takeuchi (1976), for their size says nothing. Fresh batches have no decay, see
`subspace.again`.

Early on most of the loss is no noise. So F counts by the share v of the slope g.c that noise
explains. On the Lorenz system v is .1 to .3, and on sunspots .4 to .7. The decay is at most the
mean curvature of the loss, since weights may begin at zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dopaminergic.quadratic import Quadratic
from dopaminergic.scalars import TINY

STRENGTH = 2.0


class Penalised(NamedTuple):
    """The squares of the weights in the span of the directions; float64.

    Attributes:
        inner: <D z_k, W>, shape `(R, K)`.
        gram: <D z_k, D z_l>, shape `(R, K, K)`.
        squares: |W|^2, shape `(R,)`.
        fitted: F, shape `(R,)`; None where the noise stands for it.
    """

    inner: Tensor
    gram: Tensor
    squares: Tensor
    fitted: Tensor | None

    def gain(self, c: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature of `decay` |W|^2 / 2 along the step -sum_k c_k D z_k, `(R,)`."""
        slope = (self.inner * c).sum(1)
        curvature = (c[:, None] @ self.gram @ c[..., None])[:, 0, 0]
        return decay * slope, decay * curvature

    def strength(self, noise: Tensor, slope: Tensor, products: Tensor) -> Tensor:
        """The decay rho, shape `(R,)`; 0 where the slope holds no noise, or is not finite.

        Args:
            noise: the part of the slope that is expected from the noise of the batch alone.
            slope: g.c of a step without the penalty.
            products: A.
        """
        noise = noise.clamp(min=0.0)
        share = (noise / (slope + TINY)).clamp(max=1.0)
        by_chance = noise if self.fitted is None else self.fitted
        found = STRENGTH * share * by_chance / (self.squares + TINY)
        lengths = self.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        most = products.diagonal(dim1=-2, dim2=-1).sum(-1) / (lengths + TINY)
        found = torch.minimum(found, most)
        return torch.where(found.isfinite() & (slope > 0.0), found, 0.0)


def fitted(loss: Quadratic, directions: int) -> Tensor | None:
    """F, the part of the loss that so many directions fit by chance; None where it is not known."""
    if loss.in_nats:
        # Where the network is sure, little is left that chance could have fitted.
        return loss.loss.clamp(max=directions / loss.samples)
    if loss.saturates:
        return None
    outcomes = loss.samples * max(1, loss.width)
    # A penalty of more than the loss would hold weights at 0 where all samples can be fitted.
    share = 2.0 * directions / max(1, outcomes - directions)
    return min(1.0, share) * loss.loss.abs()
