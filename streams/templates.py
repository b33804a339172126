"""What of a path names the endpoint, and what names one of its many things.

Pure. Numbers, UUIDs, hashes, tokens, dates, addresses and e-mail addresses become placeholders;
whatever could be a word of the route stays, so that two routes never become one. The rules look at
one segment of the path at a time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LONGEST", "template"]

LONGEST: Final = 255
"""Characters of a name; the rest of a longer one is left out."""
_CUT: Final = "{...}"

_ORIGIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_INTERESTING: Final = re.compile(r"[0-9@]")

_UUID_TEXT: Final = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
_UUID: Final = re.compile(_UUID_TEXT + "|{" + _UUID_TEXT + "}")
_UUID_END: Final = re.compile(_UUID_TEXT + "$")
_DATE: Final = re.compile(
    r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12]\d|3[01]))?"
    r"(?:[T_ ](?:[01]\d|2[0-3])[:-]?[0-5]\d(?:[:-]?[0-5]\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"
)
_ADDRESS: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_EMAIL: Final = re.compile(
    r"[^@/]+(?:@|%40)(?!\dx\.)[A-Za-z0-9-]*[A-Za-z][A-Za-z0-9-]*(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
)
_DIGITS: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"(?<![\w.])-?\d{1,3}\.\d{4,}(?![\w.])")  # a coordinate, no version
_FILE: Final = re.compile(r"([0-9]+)(\.[A-Za-z][A-Za-z0-9]{0,4})")
_ERROR_PAGE: Final = re.compile(r"[45]\d\d\.html?")
_LONG_NUMBER: Final = re.compile(r"(?<![0-9A-Za-z%.])[0-9]{5,}(?![0-9A-Za-z])")
_PIECE: Final = re.compile(r"[A-Za-z0-9_-]+")
_PIECES: Final = re.compile(r"([^A-Za-z0-9_%-]+|(?:%[0-9A-Fa-f]{2})+)")
_HEX: Final = re.compile(r"(?:0[xX])?[0-9a-f]+|(?:0[xX])?[0-9A-F]+")
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_WORDS: Final = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{4,}")
_UPPER_CODE: Final = re.compile(r"[A-Z0-9]{10,}")
_NUMBERS: Final = re.compile(r"[0-9]+")
_VERSIONED: Final = frozenset({"api", "rest", "v", "version"})
_NUMBERED: Final = frozenset({"error", "errors", "status"})


def template(path: str) -> str:
    """Return the path with placeholders for what varies from call to call.

    Args:
        path: Absolute path, or in absolute form; a query is left out.
    """
    origin = _ORIGIN.match(path)
    if origin is not None:
        path = path[origin.end() :] or "/"
    path = path.partition("?")[0].partition("#")[0]
    if _INTERESTING.search(path) is not None:
        path = "/".join(_segments(path.split("/")))
    return path if len(path) <= LONGEST else path[: LONGEST - len(_CUT)] + _CUT


def _segments(segments: list[str]) -> Iterator[str]:
    before = ""
    for place, segment in enumerate(segments):
        if _INTERESTING.search(segment) is None:
            yield segment
        elif _DIGITS.fullmatch(segment):
            yield segment if _is_static(segment, before, place == len(segments) - 1) else "{id}"
        elif segment.isalnum():
            yield "{hash}" if _is_hash(segment) or _is_token(segment) else segment
        else:
            yield _segment(segment)
        before = segment.lower()


def _is_static(number: str, before: str, last: bool) -> bool:
    # /rest/api/2/issue is a version, /status/404 says which of a few.
    if before in _VERSIONED:
        return len(number) <= 2
    return last and before in _NUMBERED and len(number) == 3


def _segment(segment: str) -> str:
    if _UUID.fullmatch(segment):
        return "{uuid}"
    if _DATE.fullmatch(segment):
        return "{date}"
    if _ADDRESS.fullmatch(segment):
        return "{ip}"
    if _EMAIL.fullmatch(segment):
        return "{email}"
    if _ERROR_PAGE.fullmatch(segment):
        return segment
    file = _FILE.fullmatch(segment)
    if file is not None:
        return "{id}" + file[2]
    # Odd places hold what is between the pieces.
    parts = _PIECES.split(_DECIMAL.sub("{id}", segment))
    for place in range(0, len(parts), 2):
        following = parts[place + 1] if place + 1 < len(parts) else ""
        before = parts[place - 1] if place else ""
        parts[place] = _piece(parts[place], dotted="." in (before[-1:], following[:1]))
    return "".join(parts)


def _piece(piece: str, *, dotted: bool) -> str:
    # Between dots a number may be part of a version.
    if _DIGITS.fullmatch(piece):
        return piece if dotted and len(piece) < 5 else "{id}"
    if not piece or piece.isalpha() or not _PIECE.fullmatch(piece):
        return piece
    if piece.isalnum():
        return "{hash}" if _is_hash(piece) or _is_token(piece) else piece
    if _UUID.fullmatch(piece):
        return "{uuid}"
    if _DATE.fullmatch(piece):
        return "{date}"
    if _is_hash(piece):
        return "{hash}"
    parted = _parted(piece)
    if parted == piece and _is_token(piece):
        return "{hash}"
    return _LONG_NUMBER.sub("{id}", parted)


def _parted(piece: str) -> str:
    # user-3fa85f64-5717-4562-b3fc-2c963f66afa6, main-9f3c1a2b44: the last part may be a hash.
    found = _UUID_END.search(piece)
    if found is not None:
        return piece[: found.start()] + "{uuid}"
    head, separator, tail = piece.rpartition("_" if piece.rfind("_") > piece.rfind("-") else "-")
    if separator and head.isalpha() and _is_hash(tail) and not tail.isdigit():
        return f"{head}{separator}{{hash}}"
    return piece


def _is_hash(text: str) -> bool:
    # Words are made of a to f too (face, decade), but hardly with so many digits among them.
    if len(text) < 8 or not _HEX.fullmatch(text):
        return False
    digits = sum(map(len, _NUMBERS.findall(text)))
    return digits >= 3 or (len(text) >= 12 and digits >= 2) or (len(text) >= 20 and digits >= 1)


def _is_token(text: str) -> bool:
    # Random characters form next to no words, and digits are all over them.
    if len(text) < 10 or not text.isascii():
        return False
    if _ULID.fullmatch(text):
        return True
    groups = len(_NUMBERS.findall(text))
    if _UPPER_CODE.fullmatch(text):
        return groups >= 2 and sum(map(len, _NUMBERS.findall(text))) >= 3
    if len(text) < 16 or not groups:
        return False
    if text.islower() and groups < 3:
        return False
    words = sum(map(len, _WORDS.findall(text)))
    limit = 0.35 if "-" in text or "_" in text else 0.5 if groups == 1 else 0.65
    return words < limit * len(text)
