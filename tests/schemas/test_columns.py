from __future__ import annotations

import numpy as np

from schemas.events import Closes, Connections


def closes(*rows: tuple[int, int, int]) -> Closes:
    array = np.array(rows).reshape(len(rows), 3)
    return Closes(array[:, 0].astype("<u4"), array[:, 1].astype("<u8"), array[:, 2].astype("<u8"))


def test_take_selects_by_position_mask_and_slice() -> None:
    table = closes((0, 10, 100), (1, 20, 200), (2, 30, 300))
    assert table.take(np.array([2, 0])).end_ns.tolist() == [30, 10]
    assert table.take(table.end_ns > 15).connection.tolist() == [1, 2]
    assert table.take(slice(0, 1)).rows == 1


def test_concatenate_keeps_order_and_types() -> None:
    joined = Closes.concatenate([closes((0, 1, 2)), closes(), closes((3, 4, 5))])
    assert joined.connection.tolist() == [0, 3]
    assert joined.duration_ns.dtype == np.dtype("<u8")


def test_concatenate_nothing_gives_an_empty_table_of_the_right_shape() -> None:
    empty = Connections.concatenate([])
    assert empty.rows == 0
    assert empty.local_address.shape == (0, 16)


def test_default_tables_share_no_writable_memory() -> None:
    """Instances share the default arrays, so nobody may write them."""
    for name, _, _ in Connections.specs():
        assert not getattr(Connections(), name).flags.writeable
