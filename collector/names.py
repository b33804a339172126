"""Numbers for names: containers and processes are kept once and referred to by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import U32

__all__ = ["NameTable"]


class NameTable:
    """A growing list of distinct names; number 0 is the empty string."""

    def __init__(self) -> None:
        self._names: list[str] = [""]
        self._numbers: dict[str, int] = {"": 0}

    def __len__(self) -> int:
        return len(self._names)

    def number(self, name: str) -> int:
        """Return the number of a name, entering it if it is new."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self._names)
            self._names.append(name)
        return found

    def text(self, number: int) -> str:
        """Return the name with this number."""
        return self._names[number]

    def local(self, *columns: U32) -> tuple[Sequence[str], list[NDArray[np.uint32]]]:
        """Renumber columns against a list that holds only the names they use.

        Returns:
            The list, beginning with the empty string, and the columns in the same order.
        """
        marked = np.zeros(len(self._names), bool)
        marked[0] = True
        for column in columns:
            marked[column] = True
        used = np.flatnonzero(marked)
        index = np.zeros(len(self._names), np.uint32)
        index[used] = np.arange(len(used), dtype=np.uint32)
        return [self._names[number] for number in used], [index[column] for column in columns]

    def keep(self, *columns: U32) -> list[NDArray[np.uint32]]:
        """Forget every name that the columns do not use and return them renumbered."""
        names, renumbered = self.local(*columns)
        self._names = list(names)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        return renumbered
