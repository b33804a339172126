"""Reading JSON whose shape nobody promised: wrong types become absences and are noted.

An object with one broken field is still worth having, so nothing here raises. What was wrong is
appended to a list that the caller counts.
"""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any, Final

__all__ = ["Fields", "ip_address", "unix_ms"]

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND: Final = datetime.timedelta(milliseconds=1)


class Fields:
    """A JSON object read field by field; a document that is no object reads as an empty one."""

    __slots__ = ("_map", "problems")

    def __init__(self, document: object, problems: list[str]) -> None:
        self.problems = problems
        self._map: dict[Any, Any] = {}
        if isinstance(document, dict):
            self._map = document
        elif document is not None:
            problems.append("not an object")

    def text(self, key: str) -> str:
        """The string under ``key``, or an empty one."""
        value = self._map.get(key)
        if isinstance(value, str):
            return _clean(value)
        if value is not None:
            self.problems.append(f"{key} is not a string")
        return ""

    def flag(self, key: str, *, default: bool = False) -> bool:
        """The boolean under ``key``, or the default."""
        value = self._map.get(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self.problems.append(f"{key} is not a boolean")
        return default

    def port(self, key: str) -> int:
        """The port number under ``key``, or 0."""
        value = self._map.get(key)
        if value is None:
            return 0
        if type(value) is int and 0 <= value <= 65_535:
            return value
        self.problems.append(f"{key} is not a port")
        return 0

    def time_ms(self, key: str) -> int:
        """The RFC 3339 time under ``key`` in Unix milliseconds, or 0."""
        value = self._map.get(key)
        if value is None:
            return 0
        result = unix_ms(value)
        if not result:
            self.problems.append(f"{key} is not a time")
        return result

    def child(self, key: str) -> Fields:
        """The object under ``key``, or an empty one."""
        return Fields(self._map.get(key), self.problems)

    def children(self, key: str) -> list[Fields]:
        """The objects in the array under ``key``."""
        return [Fields(item, self.problems) for item in self._array(key) if item is not None]

    def texts(self, key: str) -> list[str]:
        """The strings in the array under ``key``."""
        found = []
        for item in self._array(key):
            if isinstance(item, str):
                found.append(_clean(item))
            else:
                self.problems.append(f"{key} holds something that is not a string")
        return found

    def labels(self, key: str) -> dict[str, str]:
        """The string to string mapping under ``key``."""
        value = self._map.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{key} is not an object")
            return {}
        found = {}
        for name, text in value.items():
            if isinstance(name, str) and isinstance(text, str):
                found[_clean(name)] = _clean(text)
            else:
                self.problems.append(f"{key} holds something that is not a string")
        return found

    def addresses(self, key: str) -> list[str]:
        """The IP addresses in the array under ``key``, normalised, each once."""
        return self.unique_addresses(self.texts(key), key)

    def unique_addresses(self, texts: list[str], what: str) -> list[str]:
        """Those of the texts that are IP addresses, normalised, each once, in order."""
        found: dict[str, None] = {}
        for text in texts:
            address = ip_address(text)
            if address:
                found[address] = None
            elif text:
                self.problems.append(f"{what} holds something that is not an IP address")
        return list(found)

    def _array(self, key: str) -> list[Any]:
        value = self._map.get(key)
        if isinstance(value, list):
            return value
        if value is not None:
            self.problems.append(f"{key} is not an array")
        return []


def ip_address(text: str) -> str:
    """The address as the rest of the pipeline writes it (IPv6 in RFC 5952 form), or nothing."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def unix_ms(value: object) -> int:
    """Unix milliseconds of an RFC 3339 time, or 0 if it is none (or before 1970)."""
    if not isinstance(value, str):
        return 0
    try:
        moment = datetime.datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0, (moment - _EPOCH) // _MILLISECOND)
    except (ValueError, OverflowError):
        return 0


def _clean(text: str) -> str:
    # JSON may hold lone surrogates, which are not UTF-8 and which protobuf refuses.
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")
