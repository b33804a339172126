from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.recording import Recorder, read_recording
from schemas.errors import ConfigError, DecodeError, PodwireError

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = [b"first", b"", b"x" * 100_000]


def _recording(path: Path) -> Path:
    recorder = Recorder(path)
    for message in MESSAGES:
        recorder.write(message)
    recorder.close()
    return path


@pytest.mark.parametrize("name", ["a.podwire", "a.podwire.gz"])
def test_messages_come_back(tmp_path: Path, name: str) -> None:
    path = _recording(tmp_path / name)
    assert list(read_recording(path)) == MESSAGES
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize("kept", [0, 5, 13, 15, 22, 1000])
def test_a_cut_recording_is_an_error(tmp_path: Path, kept: int) -> None:
    path = _recording(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DecodeError, match=r"no podwire recording|ends in the middle"):
        list(read_recording(path))


def test_a_cut_compressed_recording_is_an_error(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DecodeError, match="damaged"):
        list(read_recording(path))


def test_a_changed_byte_is_an_error(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="message 3 is damaged"):
        list(read_recording(path))


def test_a_later_version_says_so(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a")
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="version 2"):
        list(read_recording(path))


def test_a_length_beyond_reason_is_not_read(tmp_path: Path) -> None:
    path = _recording(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:12] + b"\xff" * 8)
    with pytest.raises(DecodeError, match="claims 4294967295 bytes"):
        list(read_recording(path))


@given(st.binary(max_size=200), st.booleans())
def test_garbage_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("recording") / "a"
    path.write_bytes(gzip.compress(content)[:-1] if packed else content)
    with pytest.raises(PodwireError):
        list(read_recording(path))


def test_files_that_cannot_be_used_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--replay"):
        list(read_recording(tmp_path / "none"))
    with pytest.raises(ConfigError, match="--record"):
        Recorder(tmp_path / "no" / "folder")
