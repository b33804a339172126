from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from collector.abi import COUNTS, Kind
from collector.config import CollectorConfig, object_path
from collector.libbpf import _FUNCTIONS, _OPTIONAL, BpfObject, load_library
from schemas.errors import BpfError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.bpf


@pytest.fixture
def opened() -> Iterator[BpfObject]:
    opened = BpfObject(object_path(CollectorConfig()))
    yield opened
    opened.close()


def test_every_function_has_its_types() -> None:
    library = load_library()
    for name, (_, arguments) in (_FUNCTIONS | _OPTIONAL).items():
        if library.has(name):
            function: Any = library._functions[name]
            assert function.argtypes == arguments
    assert library.version.startswith("v")


def test_a_file_that_is_no_object_gives_libbpfs_own_words(tmp_path: Path) -> None:
    path = tmp_path / "x.bpf.o"
    path.write_bytes(b"\x7fELF nothing more")
    with pytest.raises(BpfError, match=r"open .*x\.bpf\.o") as caught:
        BpfObject(path)
    assert caught.value.errno != 0
    assert "libbpf: " in caught.value.log_tail


def test_programs_are_listed_with_their_sections(opened: BpfObject) -> None:
    sections = {program.name: program.section for program in opened.programs}
    assert sections["sock_send_length"] == "tp_btf/sock_send_length"
    iterators = [program.name for program in opened.programs if program.is_iterator]
    assert "find_sockets" in iterators


def test_constants_are_set_where_the_kernel_reads_them(opened: BpfObject) -> None:
    variables = opened._rodata_variables()
    assert variables["podwire_own_pid"][1] == 4
    assert variables["podwire_id_base"][1] == 8
    opened.set_rodata({"podwire_own_pid": os.getpid(), "podwire_id_base": 1 << 40})
    with pytest.raises(ConfigError, match="does not fit in 4 bytes"):
        opened.set_rodata({"podwire_own_pid": 1 << 32})


def test_a_missing_map_is_named(opened: BpfObject) -> None:
    with pytest.raises(BpfError, match="find map nothing"):
        opened.map_fd("nothing")


def test_maps_are_readable_after_loading(opened: BpfObject) -> None:
    opened.set_max_entries("transfers", 1 << 16)
    opened.load()
    counts = np.frombuffer(opened.read_percpu("counts", Kind.TRANSFER), COUNTS)
    assert len(counts) >= os.cpu_count()
    assert counts["submitted"].sum() == 0


def test_close_may_be_repeated(opened: BpfObject) -> None:
    opened.load()
    opened.close()
    opened.close()
