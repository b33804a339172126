from __future__ import annotations

import numpy as np

from collector.names import NameTable


def _column(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


def test_a_name_has_one_number_and_zero_is_empty() -> None:
    names = NameTable()
    assert names.number("") == 0
    assert names.number("a") == names.number("a") == 1
    assert names.number("b") == 2


def test_local_lists_only_what_is_used() -> None:
    names = NameTable()
    for name in ("a", "b", "c"):
        names.number(name)
    listed, (first, second) = names.local(_column(3, 0, 3), _column(1, 1, 1))
    assert listed == ["", "a", "c"]
    assert first.tolist() == [2, 0, 2]
    assert second.tolist() == [1, 1, 1]


def test_keep_forgets_the_rest() -> None:
    names = NameTable()
    for name in ("a", "b", "c"):
        names.number(name)
    (kept,) = names.keep(_column(3))
    assert len(names) == 2
    assert kept.tolist() == [1]
    assert names.number("c") == 1
    assert names.number("b") == 2
