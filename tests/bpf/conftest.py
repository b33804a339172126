"""One set of attached programs for all tests of the kernel half; each asks for its own port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bpf.harness import Watch, program_figures
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def _watch() -> Iterator[Watch]:
    require("bpf")
    watch = Watch(iterate=True)
    yield watch
    print("\nprogram                     verified insns   native bytes   skipped recursions")
    for name, figures in program_figures(watch).items():
        print(f"{name:28}{figures['verified']:>14}{figures['jited']:>15}{figures['missed']:>21}")
    watch.close()


@pytest.fixture
def watch(_watch: Watch) -> Watch:
    """The programs, with rings emptied of what earlier tests left."""
    _watch.drain()
    for records in _watch.seen.values():
        records.clear()
    _watch.drain()
    return _watch
