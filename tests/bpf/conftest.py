"""One set of attached programs for all tests of the kernel half; each asks for its own port."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector.attach import attach, core_of
from collector.btf import parse_btf
from schemas.errors import BpfError
from tests.bpf.harness import BY_DESCRIPTOR, OBJECT, RECORDS, TIERS, Watch, program_figures
from tests.requirements import require, unmet

if TYPE_CHECKING:
    from collections.abc import Iterator

CHOSEN = os.environ.get("PODWIRE_TIERS", "").replace(",", " ").split() or list(TIERS)
"""Tiers to test the stages on."""


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
        # Only for want of what its hooks are: a verifier that refuses it is no excuse.
        kernel = parse_btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
        assert path == OBJECT, reason
        assert not kernel.has_tracepoint("sock_send_length"), reason
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def _watch(variant: Path) -> Iterator[Watch]:
    watch = Watch(iterate=True, path=variant)
    yield watch
    _print_programs(variant.name, watch)
    watch.close()


def _print_programs(name: str, watch: Watch) -> None:
    print(f"\n{name:34}verified insns   native bytes   skipped recursions")
    for program, figures in program_figures(watch).items():
        print(f"{program:34}{figures['verified']:>14}{figures['jited']:>15}{figures['missed']:>21}")


def _emptied(watch: Watch) -> Watch:
    watch.drain()
    for records in watch.seen.values():
        records.clear()
    watch.drain()
    return watch


@pytest.fixture
def watch(_watch: Watch) -> Watch:
    """The programs, with rings emptied of what earlier tests left."""
    return _emptied(_watch)


@pytest.fixture(scope="session")
def best() -> Path:
    """The object that the collector would use here."""
    require("bpf")
    return OBJECT if refusal(OBJECT) is None else BY_DESCRIPTOR


@pytest.fixture(scope="session", params=list(TIERS))
def _staged(request: pytest.FixtureRequest, best: Path) -> Iterator[Watch]:
    tier: str = request.param
    if tier not in CHOSEN:
        pytest.skip("not among PODWIRE_TIERS")
    watch = Watch(path=best, tier=tier)
    refused = [hook.reason for hook in watch.hooks if hook.twin and not hook.attached]
    if TIERS[tier] and not any(hook.twin and hook.attached for hook in watch.hooks):
        watch.close()
        unmet(tier, refused[0])
    yield watch
    _print_programs(tier, watch)
    watch.close()


@pytest.fixture
def staged(_staged: Watch) -> Watch:
    """The programs of every tier with those of the stages, as `watch`."""
    return _emptied(_staged)
