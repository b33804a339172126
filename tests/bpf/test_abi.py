"""What the collector believes about records equals what every committed object says."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from collector import abi, build
from collector.btf import parse_object
from collector.build import OBJECTS, abi_source, hash_layout, hash_sources

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

OBJECT_FILES = sorted(OBJECTS.glob("*/*.bpf.o"))
CORE_FILES = [path for path in OBJECT_FILES if path.name.removesuffix(".bpf.o") in build.CORE]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


DTYPES = {
    "podwire_connection_record": abi.CONNECTION_RECORD,
    "podwire_transfer_record": abi.TRANSFER_RECORD,
    "podwire_process_record": abi.PROCESS_RECORD,
    "podwire_counts": abi.COUNTS,
}


def test_both_architectures_are_there() -> None:
    expected = {f"{name}/{each}.bpf.o" for name in build.ARCHITECTURES for each in build.VARIANTS}
    assert {name_of(path) for path in OBJECT_FILES} == expected


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_layout(path) -> None:
    btf = parse_object(path.read_bytes())
    assert hash_layout(btf) == abi.LAYOUT_HASH
    assert abi_source(btf) == build.ABI.read_text()
    for name, dtype in DTYPES.items():
        found = btf.struct(name)
        assert dtype.itemsize == found.size
        assert dtype.names == tuple(field.name for field in found.fields)
        for field in found.fields:
            part, offset = dtype.fields[field.name][:2]
            assert offset == field.offset
            assert part.itemsize == field.size * field.count


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_records_have_no_holes(dtype: np.dtype) -> None:
    """Every byte belongs to a member, so none leaks what was in the memory before."""
    covered = sum(dtype.fields[name][0].itemsize for name in dtype.names)
    assert covered == dtype.itemsize
    assert dtype.itemsize % 8 == 0


def test_manifest() -> None:
    manifest = json.loads((OBJECTS / "MANIFEST.json").read_text())
    assert manifest["sources"] == hash_sources()
    assert manifest["layout"] == abi.LAYOUT_HASH
    for path in OBJECT_FILES:
        entry = manifest["objects"][name_of(path)]
        assert entry["size"] == path.stat().st_size
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("path", OBJECT_FILES, ids=name_of)
def test_no_path_of_the_building_machine(path) -> None:
    raw = path.read_bytes()
    assert str(build.ROOT).encode() not in raw
    assert b"./bpf/programs/" in raw


def test_check_finds_what_is_out_of_date(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(build, "ABI", tmp_path / "abi.py")
    (tmp_path / "abi.py").write_text("old")
    manifest = json.loads((OBJECTS / "MANIFEST.json").read_text())
    assert build._compare(manifest | {"sources": "other"}, "new") == 1
    assert "sources collector/abi.py" in capsys.readouterr().err
    other_compiler = manifest | {"compiler": "another", "objects": {}}
    assert build._compare(other_compiler, "old") == 0
    assert "bytes not compared" in capsys.readouterr().out
