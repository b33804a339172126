"""Header blocks of HTTP/2 to fields (RFC 7541), for an observer that may join late.

A decoder follows one direction of one connection. What it cannot know, because the encoder put it
into the dynamic table before the decoder looked, is a field whose name or value is None: known
entries are found by counting from the newest, so that they stay right whatever lies behind them.

Entries are kept by the size that the encoder announced. Keeping more than the encoder does would
do no harm: it never refers to what it evicted.
"""

from __future__ import annotations

from typing import Final

from collector.protocols.huffman import decode_huffman

__all__ = ["HIDDEN", "STATIC_TABLE", "Decoder", "Field", "FieldBlock"]

Field = tuple[str | None, str | None]
"""Name and value, one character (U+0000 to U+00FF) an octet; None where it is not known."""

FieldBlock = tuple[list[Field], bool]
"""Fields in their order, and whether the block was well-formed to its end."""

HIDDEN: Final[Field] = (None, None)
"""A field whose entry is older than the decoder."""

DEFAULT_TABLE_SIZE: Final = 4_096
"""``SETTINGS_HEADER_TABLE_SIZE`` unless announced otherwise (RFC 9113 section 6.5.2)."""

_UNLIMITED: Final = 0xFFFF_FFFF
_KEPT_SIZE: Final = 65_536
"""Entries beyond this are forgotten, however large a table the two ends agreed on."""

_ENTRY_OVERHEAD: Final = 32  # RFC 7541 section 4.1
_LONGEST_INTEGER: Final = 8  # octets after the prefix; 56 bits are more than any block has

STATIC_TABLE: Final[tuple[tuple[str, str], ...]] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
)
"""RFC 7541 appendix A; index 1 comes first."""

_BY_INDEX: Final[tuple[Field, ...]] = (HIDDEN, *STATIC_TABLE)
_FIRST_DYNAMIC: Final = len(_BY_INDEX)


class _MalformedError(Exception):
    """The block breaks a rule of RFC 7541. Does not leave this module."""


class Decoder:
    """Field blocks of one direction to fields (RFC 7541 sections 3 and 6).

    Attributes:
        generation: Changes whenever a block changed the dynamic table. The same octets mean the
            same fields as long as it stays.
    """

    __slots__ = ("_entries", "_has_older", "_limit", "_max_size", "_size", "generation")

    def __init__(self, *, is_joined: bool = False) -> None:
        self.generation = 0
        # Newest last: entry 62 of RFC 7541's address space is the last one.
        self._entries: list[Field] = []
        self._size = 0
        self._max_size = DEFAULT_TABLE_SIZE
        self._limit = DEFAULT_TABLE_SIZE
        self._has_older = False
        if is_joined:
            self.forget()

    def forget(self) -> None:
        """Unseen blocks changed the table: every entry in it is unknown from here on."""
        self._entries.clear()
        self._size = 0
        self._max_size = self._limit = _UNLIMITED
        self._has_older = True
        self.generation += 1

    def allow(self, table_size: int) -> None:
        """The decoding end announced ``SETTINGS_HEADER_TABLE_SIZE`` (RFC 9113 section 6.5.2).

        The encoder may still use what was announced before, so the largest counts.
        """
        self._limit = max(self._limit, table_size)

    def decode(self, block: bytes) -> FieldBlock:
        """Decode a whole field block (RFC 7541 section 3.2) and keep the table up to date."""
        fields: list[Field] = []
        try:
            self._decode(block, fields)
        except (_MalformedError, IndexError):
            return fields, False
        return fields, True

    def _decode(self, block: bytes, fields: list[Field]) -> None:
        position = 0
        size = len(block)
        while position < size:
            first = block[position]
            if first >= 0x80:  # section 6.1: indexed
                index = first & 0x7F
                position += 1
                if index == 0x7F:
                    index, position = _read_integer(block, position, 0x7F)
                if 0 < index < _FIRST_DYNAMIC:
                    fields.append(_BY_INDEX[index])
                else:
                    fields.append(self._find(index))
                continue
            if first & 0xE0 == 0x20:  # section 6.3: size of the table
                position = self._resize(block, position, is_late=bool(fields))
                continue
            # Sections 6.2.1 to 6.2.3: a literal, with indexing if bit 6 is set.
            prefix = 0x3F if first & 0x40 else 0x0F
            index = first & prefix
            position += 1
            if index == prefix:
                index, position = _read_integer(block, position, prefix)
            name: str | None
            if index == 0:
                name, position = _read_string(block, position)
            elif index < _FIRST_DYNAMIC:
                name = _BY_INDEX[index][0]
            else:
                name = self._find(index)[0]
            value, position = _read_string(block, position)
            field = (name, value)
            fields.append(field)
            if first & 0x40:
                self._insert(field)

    def _find(self, index: int) -> Field:
        behind = index - _FIRST_DYNAMIC
        if behind < 0:
            raise _MalformedError
        if behind < len(self._entries):
            return self._entries[-1 - behind]
        # An entry takes 32 octets at least, so that a table has no more than so many.
        most = min(self._max_size, _KEPT_SIZE) // _ENTRY_OVERHEAD
        if self._has_older and behind < most:
            return HIDDEN
        raise _MalformedError

    def _insert(self, field: Field) -> None:
        self.generation += 1
        self._entries.append(field)
        self._size += _measure(field)
        if self._size > self._max_size or self._size > _KEPT_SIZE:
            self._evict()

    def _evict(self) -> None:
        # RFC 7541 section 4.4: an entry larger than the table leaves it empty.
        kept = min(self._max_size, _KEPT_SIZE)
        if self._max_size > _KEPT_SIZE:
            self._has_older = True
        gone = 0
        while self._size > kept:
            self._size -= _measure(self._entries[gone])
            gone += 1
        del self._entries[:gone]

    def _resize(self, block: bytes, position: int, *, is_late: bool) -> int:
        size = block[position] & 0x1F
        position += 1
        if size == 0x1F:
            size, position = _read_integer(block, position, 0x1F)
        if is_late or size > self._limit:  # RFC 7541 sections 4.2 and 6.3
            raise _MalformedError
        self._max_size = size
        self.generation += 1
        self._evict()
        if size < _ENTRY_OVERHEAD:
            self._has_older = False
        return position


def _measure(field: Field) -> int:
    # RFC 7541 section 4.1; what is not known counts as empty.
    name, value = field
    return _ENTRY_OVERHEAD + len(name or "") + len(value or "")


def _read_integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    # RFC 7541 section 5.1, after a prefix of ones.
    value = prefix
    for shift in range(0, 7 * _LONGEST_INTEGER, 7):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise _MalformedError


def _read_string(block: bytes, position: int) -> tuple[str, int]:
    # RFC 7541 section 5.2.
    first = block[position]
    length = first & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _read_integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _MalformedError
    raw = block[position:end]
    if first < 0x80:
        return raw.decode("latin-1"), end
    text = decode_huffman(raw)
    if text is None:
        raise _MalformedError
    return text, end
