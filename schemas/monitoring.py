"""The monitoring scope: which connections are watched, by namespace, label, node and port.

A rule says something of one end of a connection, and everything it says must hold; whose port it
names is the server's. A connection is watched if either of its ends is included (or nothing is
named to be included) and neither is excluded.

One question serves every stage: which server ports are left out for certain, given what is known
of both ends? Who knows both gets the whole answer; who knows one end, or a part of it, gets what
no further knowledge could change.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas.config import SCOPE, load_file
from schemas.errors import ConfigError
from schemas.telemetry import counter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EVERYTHING", "PORTS", "UNKNOWN", "End", "MonitoringScope", "Rule", "ScopeFile"]

PORTS: Final = 1 << 16
_LISTS: Final = ("include", "exclude")
_SELECTORS: Final = ("namespaces", "labels", "nodes", "ports")
_PORTS_SAID: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAX_ANSWERS: Final = 4_096
_ALL: Final = np.ones(PORTS, bool)
_NONE: Final = np.zeros(PORTS, bool)

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """What is known of an end of a connection. None is not known; "" and {} are none."""

    namespace: str | None = None
    labels: Mapping[str, str] | None = None
    node: str | None = None


UNKNOWN: Final = End()


@dataclass(frozen=True)
class Rule:
    """What one end has to be; what is empty may be anything.

    Attributes:
        namespaces: Names, ``*`` standing for any text: one of them.
        labels: Of the pod, values with ``*``: all of them.
        nodes: Names with ``*``: one of them.
        ports: First and last of ranges that the end serves on: one of them.
    """

    namespaces: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    nodes: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()

    def names(self, end: End) -> bool | None:
        """Return whether an end is meant, its port apart; None if that is not known."""
        verdicts = [_among(self.namespaces, end.namespace), _among(self.nodes, end.node)]
        for key, pattern in self.labels:
            if end.labels is None:
                verdicts.append(None)
            else:
                verdicts.append(key in end.labels and _matches(end.labels[key], pattern))
        if False in verdicts:
            return False
        return None if None in verdicts else True

    @cached_property
    def server_ports(self) -> NDArray[np.bool_]:
        """Which ports are named, shape (PORTS,)."""
        named = np.zeros(PORTS, bool)
        for first, last in self.ports:
            named[first : last + 1] = True
        return named

    def __str__(self) -> str:
        parts = {
            "namespaces": self.namespaces,
            "labels": [f"{key}={pattern}" for key, pattern in self.labels],
            "nodes": self.nodes,
            "ports": [str(a) if a == b else f"{a}-{b}" for a, b in self.ports],
        }
        return "; ".join(f"{name} {', '.join(said)}" for name, said in parts.items() if said)


@dataclass(frozen=True)
class MonitoringScope:
    """What is watched; without rules, everything."""

    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    _answers: dict[tuple[bool | None, ...], NDArray[np.bool_]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    # Many ends have one answer: by its bits
    _tables: dict[bytes, NDArray[np.bool_]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def parse(cls, section: object) -> MonitoringScope:
        """Read the section of a configuration file.

        Raises:
            ConfigError: With the place at fault, for whatever is no rule.
        """
        if section is None:
            return EVERYTHING
        lists = _mapping(SCOPE, section, _LISTS)
        return cls(**{name: _rules(f"{SCOPE}.{name}", lists.get(name)) for name in _LISTS})

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.include and not self.exclude

    @property
    def names_pods(self) -> bool:
        """Whether pods must be known to decide."""
        return any(rule.namespaces or rule.labels for rule in (*self.include, *self.exclude))

    def left_out(self, client: End, server: End) -> NDArray[np.bool_]:
        """Return at which server ports a connection of these ends is certainly not watched.

        Returns:
            Shape (PORTS,); the same array for the same answer, not to be written to.
        """
        rules = (*self.include, *self.exclude)
        verdicts = tuple(rule.names(end) for end in (client, server) for rule in rules)
        answer = self._answers.get(verdicts)
        if answer is None:
            if len(self._answers) > _MAX_ANSWERS:
                self._answers.clear()
            of_client, of_server = verdicts[: len(rules)], verdicts[len(rules) :]
            answer = self._answers[verdicts] = self._answer(of_client, of_server)
        return answer

    def _answer(
        self, client: tuple[bool | None, ...], server: tuple[bool | None, ...]
    ) -> NDArray[np.bool_]:
        count = len(self.include)
        # What may be included must be watched; what may be excluded as well.
        included = _union(self.include, client[:count], server[:count], lambda it: it is not False)
        excluded = _union(self.exclude, client[count:], server[count:], lambda it: it is True)
        out: NDArray[np.bool_] = excluded if not self.include else excluded | ~included
        return self._tables.setdefault(np.packbits(out).tobytes(), out)

    def __str__(self) -> str:
        if self.is_everything:
            return "everything"
        lines = [f"include {rule}" for rule in self.include] or ["include everything"]
        return "\n".join((*lines, *(f"exclude {rule}" for rule in self.exclude)))


EVERYTHING: Final = MonitoringScope()


class ScopeFile:
    """The scope in a configuration file, read again when the file changes.

    One that cannot be read leaves the scope in force as it is.

    Args:
        path: The file; None if there is none, and so everything is watched for ever.
        component: Who reads it, for the counter of errors.

    Raises:
        ConfigError: If what is there at first is no scope.
    """

    def __init__(self, path: Path | None, component: str) -> None:
        self.path = path
        self._component = component
        self._is_due = False
        self._read = self._seen = self._stamp()
        self.scope = EVERYTHING if path is None else _read(path)
        if not self.scope.is_everything:
            _LOG.info("monitoring scope of %s: %s", path, _in_one_line(self.scope))

    def reload(self) -> None:
        """Read the file at the next `poll`, changed or not; may be called by a signal."""
        self._is_due = True

    def poll(self) -> bool:
        """Look at the file; return whether another scope is in force now.

        A file that changes is read when it has stayed as it is for one call: who writes it may not
        have finished.
        """
        if self.path is None:
            return False
        stamp, seen = self._stamp(), self._seen
        self._seen = stamp
        if not self._is_due and (stamp == self._read or stamp != seen):
            return False
        self._is_due = False
        self._read = stamp
        try:
            scope = _read(self.path)
        except ConfigError as error:
            counter("podwire_errors_total").labels(self._component, "scope").inc()
            _LOG.error("the monitoring scope stays as it was: %s", error)
            return False
        if scope == self.scope:
            return False
        self.scope = scope
        _LOG.info("monitoring scope of %s is now: %s", self.path, _in_one_line(scope))
        return True

    def _stamp(self) -> tuple[int, ...]:
        if self.path is None:
            return ()
        try:
            # Of the file behind links: Kubernetes changes a mounted ConfigMap by turning one round.
            status = os.stat(self.path)
        except OSError:
            return ()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> MonitoringScope:
    return MonitoringScope.parse(load_file(path).get(SCOPE))


def _in_one_line(scope: MonitoringScope) -> str:
    return " | ".join(str(scope).splitlines())


def _among(patterns: tuple[str, ...], text: str | None) -> bool | None:
    if not patterns:
        return True
    if text is None:
        return None
    return any(_matches(text, pattern) for pattern in patterns)


def _matches(text: str, pattern: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _union(
    rules: tuple[Rule, ...],
    client: tuple[bool | None, ...],
    server: tuple[bool | None, ...],
    counts: Callable[[bool | None], bool],
) -> NDArray[np.bool_]:
    # The ports of all rules that name an end, as far as a verdict counts.
    named = _NONE
    for rule, of_client, of_server in zip(rules, client, server, strict=True):
        if rule.ports and counts(of_server):
            named = named | rule.server_ports
        elif not rule.ports and (counts(of_client) or counts(of_server)):
            return _ALL
    return named


def _rules(place: str, listed: object) -> tuple[Rule, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise ConfigError(place, "must be a list of rules")
    return tuple(_rule(f"{place}[{number}]", each) for number, each in enumerate(listed))


def _rule(place: str, said: object) -> Rule:
    values = _mapping(place, said, _SELECTORS)
    if not values:
        raise ConfigError(place, f"says nothing; a rule has one or more of {', '.join(_SELECTORS)}")
    for name, value in values.items():
        if value is None or value in ([], {}, ""):
            raise ConfigError(f"{place}.{name}", "is empty; leave it out to mean any")
    return Rule(
        namespaces=_texts(f"{place}.namespaces", values.get("namespaces", [])),
        labels=_labels(f"{place}.labels", values.get("labels", {})),
        nodes=_texts(f"{place}.nodes", values.get("nodes", [])),
        ports=_ports(f"{place}.ports", values.get("ports", [])),
    )


def _mapping(place: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(place, f"must be a mapping of {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{place}.{key}", f"unknown; it is none of {', '.join(keys)}")
    return value


def _texts(place: str, value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(_text(f"{place}[{number}]", each) for number, each in enumerate(listed))


def _text(place: str, value: object) -> str:
    # YAML makes numbers and truth values of bare words; what was written cannot be told from them.
    if not isinstance(value, str) or not value:
        raise ConfigError(place, f"{value!r} is no text; put it in quotes")
    return value


def _labels(place: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ConfigError(place, "must be a mapping of labels to their values")
    return tuple(
        (_text(place, key), _text(f"{place}.{key}", pattern)) for key, pattern in value.items()
    )


def _ports(place: str, value: object) -> tuple[tuple[int, int], ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(_range(f"{place}[{number}]", each) for number, each in enumerate(listed))


def _range(place: str, value: object) -> tuple[int, int]:
    said = _PORTS_SAID.fullmatch(str(value))
    if said is None:
        raise ConfigError(place, f"{value!r} is neither a port nor a range like 80-90")
    found = int(said[1]), int(said[2] or said[1])
    if not 1 <= found[0] <= found[1] < PORTS:
        raise ConfigError(place, f"{value!r} is no range within 1-{PORTS - 1}")
    return found
