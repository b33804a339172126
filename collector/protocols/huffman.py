"""The Huffman code of HPACK strings (RFC 7541 section 5.2 and appendix B).

Decoded by a state machine that takes a byte per step. A state is an inner node of the code tree;
its row of 256 transitions is built when the state is first met, because text meets few of them.
"""

from __future__ import annotations

import functools
from typing import Final

__all__ = ["decode_huffman"]

_END: Final = 256
"""Number of the symbol EOS, which must not occur in a string."""

_CACHED_STRINGS: Final = 8_192
_LONGEST_CACHED: Final = 256

# The code is canonical: codes count upwards by length, then by symbol, so that the lengths say
# all (RFC 7541 appendix B, "canonical Huffman code").
_SYMBOLS_BY_LENGTH: Final[dict[int, tuple[int, ...]]] = {
    5: tuple(b"012aceiost"),
    6: tuple(b" %-./3456789=A_bdfghlmnpru"),
    7: tuple(b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    8: tuple(b"&*,;XZ"),
    10: tuple(b'!"()?'),
    11: tuple(b"'+|"),
    12: tuple(b"#>"),
    13: tuple(b"\x00$@[]~"),
    14: tuple(b"^}"),
    15: tuple(b"<`{"),
    19: (92, 195, 208),
    20: (128, 130, 131, 162, 184, 194, 224, 226),
    21: (153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230),
    22: (
        *(129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181),
        *(185, 186, 187, 189, 190, 196, 198, 228, 232, 233),
    ),
    23: (
        *(1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165),
        *(166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239),
    ),
    24: (9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237),
    25: (199, 207, 234, 235),
    26: (192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255),
    27: (
        *(203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251),
        *(252, 253, 254),
    ),
    28: (
        *(2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27),
        *(28, 29, 30, 31, 127, 220, 249),
    ),
    30: (10, 13, 22, _END),
}

# A node is a pair of what follows bit 0 and bit 1: another node's number, or ~symbol at a leaf.
_Node = list[int]

# Next state (negative: malformed) and the text that the byte completed.
_Step = tuple[int, str]


def _create_tree() -> list[_Node]:
    nodes: list[_Node] = [[0, 0]]
    code = length = 0
    for bits, symbols in _SYMBOLS_BY_LENGTH.items():
        code <<= bits - length
        length = bits
        for symbol in symbols:
            node = 0
            for shift in range(bits - 1, 0, -1):
                bit = code >> shift & 1
                if not nodes[node][bit]:
                    nodes.append([0, 0])
                    nodes[node][bit] = len(nodes) - 1
                node = nodes[node][bit]
            nodes[node][code & 1] = ~symbol
            code += 1
    return nodes


def _find_ends(nodes: list[_Node]) -> frozenset[int]:
    # A string may end in up to seven 1-bits, the beginning of EOS (RFC 7541 section 5.2).
    ends = [0]
    for _ in range(7):
        ends.append(nodes[ends[-1]][1])
    return frozenset(ends)


_NODES: Final = _create_tree()
_ENDS: Final = _find_ends(_NODES)
_ROWS: Final[list[tuple[_Step, ...] | None]] = [None] * len(_NODES)


def _create_row(state: int) -> tuple[_Step, ...]:
    row = tuple(_step(state, byte) for byte in range(256))
    _ROWS[state] = row
    return row


def _step(state: int, byte: int) -> _Step:
    text = ""
    for shift in range(7, -1, -1):
        state = _NODES[state][byte >> shift & 1]
        if state < 0:
            symbol = ~state
            if symbol == _END:
                return -1, ""
            text += chr(symbol)
            state = 0
    return state, text


def _decode(data: bytes) -> str | None:
    state = 0
    parts = []
    for byte in data:
        row = _ROWS[state]
        if row is None:
            row = _create_row(state)
        state, text = row[byte]
        if state < 0:
            return None
        parts.append(text)
    return "".join(parts) if state in _ENDS else None


_decode_cached = functools.lru_cache(_CACHED_STRINGS)(_decode)


def decode_huffman(data: bytes) -> str | None:
    """Decode a string (RFC 7541 section 5.2).

    Args:
        data: The coded octets, padding included.

    Returns:
        The text, one character (U+0000 to U+00FF) an octet; None where it is malformed: EOS inside,
        or padding that is too long or not all ones.
    """
    return _decode_cached(data) if len(data) <= _LONGEST_CACHED else _decode(data)
