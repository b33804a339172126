"""Files of recorded batches: a magic and version, then one frame per message.

A frame is the length and the CRC-32 of a message, both 4 bytes little-endian, and the message: a
serialised ``EventBatch`` exactly as it went to Kafka. A name that ends in ``.gz`` is compressed;
reading recognises compression by itself.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import IO, TYPE_CHECKING, Final, cast

from schemas.errors import ConfigError, DecodeError
from schemas.topics import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Recorder", "read_recording"]

MAGIC: Final = b"PODWIREC"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sI")
_FRAME: Final = struct.Struct("<II")
_GZIP_MAGIC: Final = b"\x1f\x8b"


class Recorder:
    """Writes a recording; what is there before is replaced.

    Raises:
        ConfigError: If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages = 0
        try:
            self._raw = path.open("wb")
            self._file = (
                cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=6))
                if path.suffix == ".gz"
                else self._raw
            )
            self._file.write(_HEAD.pack(MAGIC, VERSION))
        except OSError as error:
            raise ConfigError("--record", f"{path}: {error.strerror}") from error

    def write(self, message: bytes) -> None:
        """Append one message.

        Raises:
            ConfigError: If the file cannot be written any more, such as on a full disk.
        """
        try:
            self._file.write(_FRAME.pack(len(message), zlib.crc32(message)))
            self._file.write(message)
        except OSError as error:
            raise ConfigError("--record", f"{self.path}: {error.strerror}") from error
        self.messages += 1

    def close(self) -> None:
        """Complete the file.

        Raises:
            ConfigError: If it cannot be completed.
        """
        try:
            self._file.close()
            self._raw.close()
        except OSError as error:
            raise ConfigError("--record", f"{self.path}: {error.strerror}") from error


def read_recording(path: Path) -> Iterator[bytes]:
    """Yield the messages of a recording in order.

    Raises:
        ConfigError: If the file cannot be opened.
        DecodeError: If it is no recording, is damaged, or ends in the middle of a message.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(len(_GZIP_MAGIC))
            raw.seek(0)
            file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if head == _GZIP_MAGIC else raw
            yield from _messages(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DecodeError(f"{path}: damaged compression: {error}") from error
    except OSError as error:
        raise ConfigError("--replay", f"{path}: {error.strerror or error}") from error


def _messages(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise DecodeError(f"{path}: no podwire recording")
    _, version = _HEAD.unpack(head)
    if version != VERSION:
        raise DecodeError(f"{path}: recording version {version}, this podwire reads {VERSION}")
    number = 0
    while frame := file.read(_FRAME.size):
        number += 1
        if len(frame) < _FRAME.size:
            raise DecodeError(f"{path}: ends in the middle of message {number}")
        length, checksum = _FRAME.unpack(frame)
        if length > 2 * MAX_MESSAGE_BYTES:
            raise DecodeError(f"{path}: message {number} claims {length} bytes")
        message = file.read(length)
        if len(message) < length:
            raise DecodeError(f"{path}: ends in the middle of message {number}")
        if zlib.crc32(message) != checksum:
            raise DecodeError(f"{path}: message {number} is damaged")
        yield message
