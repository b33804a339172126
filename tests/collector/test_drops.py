"""Reasons of the kernel by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.btf import VMLINUX, parse_btf
from collector.drops import drop_reasons
from tests.requirements import unmet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.bpf
def test_names_are_those_of_the_running_kernel() -> None:
    if not VMLINUX.exists():
        unmet("bpf", "this kernel has no BTF")
    raw = VMLINUX.read_bytes()
    names = drop_reasons()
    if b"\0skb_drop_reason\0" not in raw:
        assert names == {}
        return
    values = parse_btf(raw).enum("skb_drop_reason")
    assert names[values["SKB_DROP_REASON_NOT_SPECIFIED"]] == "NOT_SPECIFIED"
    assert len(names) == len(values)


def test_a_kernel_without_names_has_numbers(tmp_path: Path) -> None:
    assert drop_reasons(tmp_path / "none") == {}
    (tmp_path / "damaged").write_bytes(b"no BTF at all")
    assert drop_reasons(tmp_path / "damaged") == {}
