"""The parts of the harness that need no virtual machine."""

from __future__ import annotations

import pytest

from tests.vm.guest import read_cost
from tests.vm.kernels import find_mirror, find_release


def test_the_mirror_is_the_machines_own() -> None:
    targets = (
        "Contents-deb|Debian|Debian|http://a.invalid/debian\n"
        "Packages|Debian|Debian-Security|http://b.invalid/debian-security\n"
        "Packages|Debian|Debian|http://c.invalid/debian\n"
    )
    assert find_mirror(targets) == "http://c.invalid/debian"
    with pytest.raises(RuntimeError, match="no Debian mirror"):
        find_mirror("Packages|Other|Other|http://d.invalid\n")


def test_the_release_is_what_the_package_depends_on() -> None:
    depends = (
        "linux-image-amd64\n  Depends: linux-base-amd64\n  Depends: linux-image-6.1.0-50-amd64\n"
    )
    assert find_release(depends) == "6.1.0-50-amd64"
    with pytest.raises(RuntimeError, match="names no kernel"):
        find_release("linux-image-amd64\n")


def test_cost_is_read_from_the_verifiers_log() -> None:
    log = (
        "verification time 5 usec\nstack depth 88+0+304\n"
        "processed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 5\n"
    )
    assert read_cost(log) == {"instructions": 1234, "stack": 392}
    assert read_cost("") == {"instructions": 0, "stack": 0}
