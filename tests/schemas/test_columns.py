from __future__ import annotations

import numpy as np

from schemas.columns import UNMEASURED_U32
from schemas.events import FIGURE_WIDTH, Closes, Connections, Transfers


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


def transfers(rows: int, figures: int | None) -> Transfers:
    columns = {
        name: np.zeros(rows, dtype) for name, dtype, width in Transfers.specs() if width == 1
    }
    if figures is not None:
        columns["figures"] = np.full((rows, FIGURE_WIDTH), figures, "<u4")
    return Transfers(**columns)


def test_a_measured_column_that_is_empty_stays_so() -> None:
    table = transfers(3, None)
    for index in (np.array([2, 0]), np.array([True, False, True]), slice(2)):
        taken = table.take(index)
        assert taken.rows == 2
        assert taken.figures.shape == (0, FIGURE_WIDTH)
    assert Transfers.concatenate([table, table]).figures.shape == (0, FIGURE_WIDTH)


def test_concatenate_fills_in_what_one_table_did_not_measure() -> None:
    parts = [transfers(2, None), transfers(1, 7), transfers(0, None)]
    joined = Transfers.concatenate(parts).figures
    assert joined.dtype == np.dtype("<u4")
    nothing = [int(UNMEASURED_U32)] * FIGURE_WIDTH
    assert joined.tolist() == [nothing, nothing, [7] * FIGURE_WIDTH]
