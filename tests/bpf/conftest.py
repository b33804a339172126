"""One set of attached programs for all tests of the kernel half; each asks for its own port."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from collector.attach import attach, core_of
from schemas.errors import BpfError
from tests.bpf.harness import BY_DESCRIPTOR, OBJECT, RECORDS, Watch, program_figures
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@functools.cache
def refusal(path: Path) -> str | None:
    """Why this kernel cannot measure with an object, or None."""
    try:
        attach(path, {}, dict.fromkeys(RECORDS, 65536), core_of(path))[0].close()
    except BpfError as error:
        return str(error)
    return None


@pytest.fixture(scope="session", params=[OBJECT, BY_DESCRIPTOR], ids=["socket", "descriptor"])
def variant(request: pytest.FixtureRequest) -> Path:
    """Every object that this kernel takes."""
    require("bpf")
    path: Path = request.param
    reason = refusal(path)
    if reason is not None:
        assert path != BY_DESCRIPTOR, reason
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def _watch(variant: Path) -> Iterator[Watch]:
    watch = Watch(iterate=True, path=variant)
    yield watch
    print(f"\n{variant.name:28}verified insns   native bytes   skipped recursions")
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
