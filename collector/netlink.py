"""Reads conntrack through netlink: events as they come, everything there is at the begin.

The node's own namespace translates what its pods send to service addresses. A pod's namespace
translates only where something was put into it (a mesh's redirect to its sidecar), so one is
entered when connections of it are met, and left alone for a while if nothing is tracked there.

A socket keeps a namespace alive, so that of a pod goes with the process that led to it; the next
process of the pod leads to it again. The kernel drops events that a full socket has no room for
(ENOBUFS): then everything is read again, and the loss is counted.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.conntrack import DUMP_REQUEST, FILTER, NOBODY, Dump, Translations, changes, sides
from collector.namespaces import entered
from schemas.telemetry import RateLimited, counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from collector.config import CollectorConfig
    from collector.conntrack import Peer
    from schemas.clock import Clock

__all__ = ["Conntrack", "host_path", "ipvs_tells", "read_conntrack"]

_LOG: Final = logging.getLogger("podwire.collector")
_NETLINK_NETFILTER: Final = 12
_NEW_AND_DESTROY: Final = 0b101
"""NFNLGRP_CONNTRACK_NEW and _DESTROY as bits."""
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BYTES: Final = 8 << 20
_MESSAGE_BYTES: Final = 1 << 16
_DUMP_TIMEOUT_S: Final = 2.0
_DUMP_AGAIN_NS: Final = 5_000_000_000
_MOST_MESSAGES: Final = 50_000
"""Of one socket at once, so that rings do not wait."""
_MOST_ENTERED: Final = 20
"""Namespaces at once, for the same reason."""
_MOST_NAMESPACES: Final = 4096
_DOUBT_NS: Final = 250_000_000
_LOOK_AGAIN_NS: Final = 1_000_000_000
_LOOK_AGAIN_MAX_NS: Final = 60_000_000_000
_IPVS_TELLS: Final = Path("/proc/sys/net/ipv4/vs/conntrack")
_IPVS_SERVICES: Final = Path("/proc/thread-self/net/ip_vs")
"""Of the namespace that the thread is in, both."""
_IPVS_HEAD: Final = 3


def read_conntrack(path: str) -> int:
    """Return how many connections a namespace tracks.

    Args:
        path: Of the namespace.

    Raises:
        OSError: If it cannot be entered or asked.
    """
    with _open(path) as asked:
        return _dump(asked, Translations(1))


def ipvs_tells(path: str) -> bool:
    """Return whether services of IPVS in a namespace, if there are any, tell conntrack.

    Args:
        path: Of the namespace.

    Raises:
        OSError: If it cannot be entered.
    """
    with entered(path):
        try:
            tells = _IPVS_TELLS.read_text().strip() != "0"
            return tells or len(_IPVS_SERVICES.read_text().splitlines()) <= _IPVS_HEAD
        except FileNotFoundError:  # nobody has loaded the module
            return True


@dataclass(slots=True)
class _Namespace:
    # One whose events are read (`events`), or that had none and is looked at again later.
    events: socket.socket | None = None
    path: str = ""
    pid: int = 0
    translations: Translations = field(default_factory=lambda: Translations(0))
    pause_ns: int = _LOOK_AGAIN_NS
    next_ns: int = 0
    is_stale: bool = False
    doubt_pause_ns: int = _DOUBT_NS
    doubt_ns: int = 0


class Conntrack:
    """Translated addresses by the network namespace of a socket.

    Args:
        config: Whose namespaces are read.
        clock: For pauses.
    """

    def __init__(self, config: CollectorConfig, clock: Clock) -> None:
        self._clock = clock
        self._limit = config.max_translations
        self._proc = Path(config.proc_path)
        self._follows = config.conntrack == "auto"
        self._spaces: dict[int, _Namespace] = {}
        self._by_pid: dict[int, int] = {}
        self._host = 0
        self._limited = RateLimited(_LOG)
        self.reason = ""
        """Why the node's namespace is not read; empty if it is."""
        if config.conntrack == "off":
            self.reason = "switched off: collector.conntrack"
            return
        path = host_path(config)
        try:
            self._host = os.stat(path).st_ino
            self._spaces[self._host] = self._watch(path, 0)
        except OSError as error:
            self.reason = f"{path}: {error.strerror}"
            counter("podwire_errors_total").labels("collector", "conntrack").inc()
            _LOG.warning("service addresses are not looked up in conntrack: %s", self.reason)

    def poll(self) -> None:
        """Take in what happened since the last call; never waits for events."""
        for number, space in list(self._spaces.items()):
            if space.events is None:
                continue
            self._read(space)
            if space.is_stale and self._clock.monotonic_ns() >= space.next_ns:
                self._read_again(number, space)
        spaces = self._spaces.values()
        gauge("podwire_collector_translations").set(sum(len(each.translations) for each in spaces))

    def follow(self, rows: NDArray[Any]) -> None:
        """Enter the namespaces of connections that are new, if something is tracked in them.

        Args:
            rows: Of `collector.connections.ROW`.
        """
        if not self._follows:
            return
        known = rows[(rows["pid"] != 0) & (rows["netns"] != 0) & (rows["netns"] != self._host)]
        entered = 0
        for number, pid in np.unique(known[["netns", "pid"]]).tolist():
            space = self._spaces.get(number)
            if space is not None and space.events is not None:
                continue
            now = self._clock.monotonic_ns()
            if space is not None and now < space.next_ns:
                continue
            if entered == _MOST_ENTERED:
                return
            entered += 1
            self._enter(number, pid, now)

    def forget(self, pids: Iterable[int]) -> None:
        """Leave the namespaces that processes led to which are gone, or are others now."""
        if not self._by_pid:
            return
        for pid in pids:
            number = self._by_pid.pop(pid, None)
            if number is not None:
                self._leave(self._spaces.pop(number))

    def peers(self, rows: NDArray[Any]) -> list[Peer]:
        """Return the true peer of each connection, `NOBODY` where nothing is translated.

        Of a pod that translates, all is read again where nothing was told of some: it was seen that
        those of a whole second were missing. Ever more rarely while that finds nothing.

        Args:
            rows: Of `collector.connections.ROW`.
        """
        found = self._known(rows)
        open_ends = np.array([peer == NOBODY for peer in found], bool)
        now = self._clock.monotonic_ns()
        for number in np.unique(rows["netns"][open_ends]).tolist():
            space = self._spaces.get(number)
            if space is None or number == self._host or not space.events:
                continue
            if not len(space.translations) or now < space.doubt_ns:
                continue
            self._read_again(number, space)
            places = np.flatnonzero(open_ends & (rows["netns"] == number)).tolist()
            again = self._known(rows[places])
            for place, peer in zip(places, again, strict=True):
                found[place] = peer
            has_missed = any(peer != NOBODY for peer in again)
            space.doubt_pause_ns = (
                _DOUBT_NS if has_missed else min(2 * space.doubt_pause_ns, _LOOK_AGAIN_MAX_NS)
            )
            space.doubt_ns = now + space.doubt_pause_ns
            if has_missed:
                counter("podwire_collector_conntrack_losses_total").labels("untold").inc()
        return found

    def _known(self, rows: NDArray[Any]) -> list[Peer]:
        host = self._spaces.get(self._host)
        tables = {
            number: space.translations for number, space in self._spaces.items() if space.events
        }
        if not any(map(len, tables.values())):
            return [NOBODY] * len(rows)
        nothing = Translations(0)
        of_host = nothing if host is None else host.translations
        found = []
        for number, side in zip(rows["netns"].tolist(), sides(rows), strict=True):
            own = tables.get(number, nothing).peer(side)
            found.append(own or of_host.peer(side) or NOBODY)
        return found

    def close(self) -> None:
        """Leave all namespaces; safe to repeat."""
        for space in self._spaces.values():
            self._leave(space)
        self._spaces.clear()
        self._by_pid.clear()

    def _enter(self, number: int, pid: int, now: int) -> None:
        path = str(self._proc / str(pid) / "ns/net")
        before = self._spaces.pop(number, None)
        pause = _LOOK_AGAIN_NS if before is None else before.pause_ns
        space = _Namespace(pause_ns=min(2 * pause, _LOOK_AGAIN_MAX_NS), next_ns=now + pause)
        try:
            if os.stat(path).st_ino == number:
                watched = self._watch(path, pid)
                if watched.events is not None:
                    space = watched
                    self._by_pid[pid] = number
        except FileNotFoundError:
            space = _Namespace()  # the process is gone: the next one shows the way at once
        except PermissionError as error:
            self._follows = False
            text = "addresses that pods translate themselves are not looked up: %s: %s"
            _LOG.warning(text, path, error.strerror)
        except OSError as error:
            counter("podwire_errors_total").labels("collector", "conntrack").inc()
            self._limited.warning("conntrack of %s: %s", path, error.strerror)
        while len(self._spaces) >= _MOST_NAMESPACES:
            oldest = next(each for each in self._spaces if each != self._host)
            gone = self._spaces.pop(oldest)
            self._by_pid.pop(gone.pid, None)
            self._leave(gone)
        self._spaces[number] = space

    def _watch(self, path: str, pid: int) -> _Namespace:
        # Events first, so that nothing happens between them and the dump. A pod's namespace in
        # which nothing is tracked is not worth a socket.
        events = _open(path, _NEW_AND_DESTROY)
        translations = Translations(self._limit)
        try:
            with _open(path) as asked:
                entries = _dump(asked, translations)
        except OSError:
            events.close()
            raise
        if pid and not entries:
            events.close()
            return _Namespace()
        return _Namespace(events, path, pid, translations)

    def _read(self, space: _Namespace) -> None:
        assert space.events is not None
        evicted = space.translations.evicted
        for _ in range(_MOST_MESSAGES):
            try:
                data = space.events.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                counter("podwire_collector_conntrack_losses_total").labels("overflow").inc()
                space.is_stale = True
                continue
            for change in changes(data):
                space.translations.apply(change)
        evicted = space.translations.evicted - evicted
        counter("podwire_collector_conntrack_losses_total").labels("evicted").inc(evicted)

    def _read_again(self, number: int, space: _Namespace) -> None:
        # After an overflow; entries of connections that ended meanwhile are gone with the rest.
        space.next_ns = self._clock.monotonic_ns() + _DUMP_AGAIN_NS
        space.translations.clear()
        try:
            with _open(space.path) as asked:
                _dump(asked, space.translations)
        except OSError as error:
            counter("podwire_errors_total").labels("collector", "conntrack").inc()
            self._limited.warning("conntrack of %s: %s", space.path, error.strerror)
            if number != self._host:
                self._by_pid.pop(space.pid, None)
                self._leave(self._spaces.pop(number))
            return
        space.is_stale = False

    def _leave(self, space: _Namespace) -> None:
        if space.events is not None:
            space.events.close()
            space.events = None


def host_path(config: CollectorConfig) -> str:
    """Return where the node's own network namespace is."""
    return config.host_netns or str(Path(config.proc_path) / "1/ns/net")


def _open(path: str, groups: int = 0) -> socket.socket:
    # A socket belongs to the namespace that its maker was in.
    with entered(path):
        return _socket(groups)


def _socket(groups: int) -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    try:
        made.settimeout(0 if groups else _DUMP_TIMEOUT_S)
        if groups:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            address = FILTER.__array_interface__["data"][0]
            program = len(FILTER).to_bytes(8, "little") + address.to_bytes(8, "little")
            made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)  # struct sock_fprog
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def _dump(asked: socket.socket, translations: Translations) -> int:
    # Enters all that is there; returns how many connections are tracked, translated or not.
    asked.send(DUMP_REQUEST)
    dump = Dump()
    while not dump.is_done:
        for change in changes(asked.recv(_MESSAGE_BYTES), dump):
            translations.apply(change)
    if dump.error:
        raise OSError(dump.error, os.strerror(dump.error))
    return dump.entries
