"""Lost packets by relation and the kernel's reason.

Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from schemas.events import Drops

__all__ = ["Losses", "losses_of"]

Losses = dict[tuple[int, str], int]
"""Packets by place of the relation and reason."""


def losses_of(drops: Drops, index: NDArray[np.intp], names: Sequence[str]) -> Losses:
    """Add up the packets of drops.

    Args:
        drops: Rows of one minute.
        index: Shape (connections,), the relation of each.
        names: Dictionary of the batch.
    """
    # Row by row: a host drops few packets, and of a connection only when its records are made.
    losses: Losses = {}
    for place, reason, packets in zip(
        index[drops.connection].tolist(),
        drops.reason.tolist(),
        drops.packets.tolist(),
        strict=True,
    ):
        loss = (place, names[reason])
        losses[loss] = losses.get(loss, 0) + packets
    return losses
