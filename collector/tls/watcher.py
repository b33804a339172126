"""Runs the probes: the object with their programs, and a thread that looks at new files.

Beside the drain, which must not wait for files that may be on other machines' disks.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from collector.abi import ProcessEvent
from collector.bpf_object import BpfObject
from collector.config import tls_path
from collector.tls.attaching import AllAtOnce, OneByOne
from collector.tls.probes import Probes
from schemas.errors import PodwireError
from schemas.telemetry import counter, gauge
from schemas.tls import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from collector.config import CollectorConfig
    from collector.tls.attaching import Attacher

__all__ = ["OFF", "Watcher", "start_tls"]

OFF: Final = "switched off by collector.tls"
_LOG: Final = logging.getLogger("podwire.collector")
_STOPPED: Final = "tls_stopped"
"""Their map that ends what they do, see ``bpf/programs/tls.h``."""
_EVERY_S: Final = 30.0
"""From one look at all processes to the next."""
_FIRST_LOOK_S: Final = 30.0
"""For how long a collector waits for the first one: what is left is looked at while it runs."""
_MAX_EXECUTED: Final = 65_536


class Watcher:
    """Probes that run, or the reason why not.

    Args:
        proc: Where the node's ``/proc`` is.
        programs: The loaded object; None if nothing runs.
        attacher: Of that object.
        reason: Why there is no object.
    """

    def __init__(
        self,
        proc: Path,
        programs: BpfObject | None = None,
        attacher: Attacher | None = None,
        reason: str = "",
    ) -> None:
        self.object = programs
        self.reason = reason
        self._proc = proc
        self.probes: Probes | None = None
        if programs is not None and attacher is not None:
            self.probes = Probes(programs, attacher, proc, attacher.room())
        self._executed: set[tuple[int, int, int]] = set()
        # Records of processes, the id of one that is asked about, or the end
        self._told: queue.SimpleQueue[NDArray[Any] | int | None] = queue.SimpleQueue()
        self._answers: dict[int, Unreadable] = {}
        self._thread: threading.Thread | None = None
        self._is_ending = threading.Event()
        self._has_failed = False
        self._due_s = 0.0  # at once: what was mapped while the programs were attached
        self._failed: dict[str, int] = {}
        self._late = 0

    def start(self) -> None:
        """Begin to look at what is told and, now and then, everywhere."""
        if self.probes is not None:
            self._thread = threading.Thread(target=self._run, name="tls-files", daemon=True)
            self._thread.start()

    def notice(self, records: NDArray[Any]) -> None:
        """Take process records; returns at once."""
        if self._thread is not None:
            told = records[records["event"] != ProcessEvent.EXIT]
            for pid in told["pid"].tolist():
                self._answers.pop(pid, None)  # it has another program now, or one file more
            if len(told):
                self._told.put(told)

    def unreadable(self, pids: Sequence[int]) -> dict[int, Unreadable]:
        """Say why what processes say inside TLS is not seen in clear; returns at once.

        Those that are missing are being looked at, and known some time later. Each is looked at
        again now and then.
        """
        if self.probes is None:
            return dict.fromkeys(pids, Unreadable.OFF)
        for pid in pids:
            if pid and pid not in self._answers:
                self._answers[pid] = Unreadable.UNKNOWN
                self._told.put(pid)
        found = {pid: self._answers.get(pid, Unreadable.UNKNOWN) for pid in pids}
        return {pid: reason for pid, reason in found.items() if reason}

    def stop(self) -> None:
        """Look at no file after this one, and let the programs do nothing more; quick."""
        if self._thread is not None:
            self._is_ending.set()
            self._told.put(None)
            self._thread.join()
            self._thread = None
        if self.object is not None:
            self.object.update_map(_STOPPED, bytes(4), (1).to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """Detach, which may take a tenth of a second a probe, and unload; safe to repeat."""
        if self.object is None:
            return
        self.stop()
        if self.probes is not None:
            self.probes.close()
        self.object.close()
        self.object = None

    def _run(self) -> None:
        while not self._is_ending.is_set():
            try:
                self._look()
            except Exception:  # what it was at is lost, but not all that comes after it
                counter("podwire_errors_total").labels("collector", "tls").inc()
                if not self._has_failed:
                    _LOG.exception("a look at the files of TLS libraries was given up")
                self._has_failed = True

    def _look(self) -> None:
        assert self.probes is not None
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + _EVERY_S
            self._answers.clear()
            self.probes.look_everywhere(self._is_ending.is_set)
        self._export()
        try:
            told = self._told.get(timeout=max(0.0, self._due_s - now_s))
        except queue.Empty:
            return
        if isinstance(told, int):
            self._answers[told] = self.probes.unreadable(told)
        elif told is not None:
            self._look_at(told)

    def _look_at(self, told: NDArray[Any]) -> None:
        assert self.probes is not None
        keys: dict[int, set[int]] = defaultdict(set)
        for pid, event, file in told[["pid", "event", "file"]].tolist():
            if event == ProcessEvent.MAPPED:
                keys[pid].add(file)
            elif self._is_new_program(pid):
                keys[pid] |= set()
        for pid, files in keys.items():
            self.probes.look_at(pid, files, self._is_ending.is_set)

    def _is_new_program(self, pid: int) -> bool:
        # Its libraries are told of when they are mapped; not the file of the program itself.
        try:
            found = os.stat(self._proc / str(pid) / "exe")
        except OSError:  # it has ended
            return False
        program = found.st_dev, found.st_ino, found.st_ctime_ns
        if program in self._executed:
            return False
        if len(self._executed) >= _MAX_EXECUTED:
            self._executed.clear()
        self._executed.add(program)
        return True

    def _export(self) -> None:
        assert self.probes is not None
        attached = sum(bool(file.links) for file in self.probes.files)
        gauge("podwire_collector_tls_files").set(attached)
        counter("podwire_collector_tls_processes_late_total").inc(self.probes.late - self._late)
        self._late = self.probes.late
        for reason, count in self.probes.failed.items():
            total = counter("podwire_collector_tls_files_failed_total").labels(reason)
            total.inc(count - self._failed.get(reason, 0))
            self._failed[reason] = count


def start_tls(
    config: CollectorConfig,
    core: BpfObject,
    constants: Mapping[str, int],
    attachers: Sequence[type[AllAtOnce | OneByOne]] = (AllAtOnce, OneByOne),
) -> Watcher:
    """Load the programs beside a core object, and attach them to what is in use now.

    To what is found soon, that is: a file can take seconds, and anybody may map any number.

    Never raises a `PodwireError`: the core figures need none of it.

    Args:
        config: Whether it is wanted, and where ``/proc`` is.
        core: Loaded.
        constants: Of the core object.
        attachers: Ways to attach, the best first; the first that works is taken.
    """
    proc = Path(config.proc_path)
    if config.tls == "off" or config.protocols == "off":
        return Watcher(proc, reason=OFF)
    reason = ""
    for kind in attachers:
        try:
            programs = _load(core, constants, kind)
        except PodwireError as error:
            reason = str(error).splitlines()[0]
            continue
        attacher = kind(programs)
        if isinstance(attacher, AllAtOnce) and not attacher.is_supported():
            programs.close()
            continue
        watcher = Watcher(proc, programs, attacher)
        assert watcher.probes is not None
        watcher.probes.look_everywhere(_when_over(_FIRST_LOOK_S))
        return watcher
    return Watcher(proc, reason=reason)


def _when_over(seconds: float) -> Callable[[], bool]:
    until_s = time.monotonic() + seconds
    return lambda: time.monotonic() >= until_s


def _load(
    core: BpfObject, constants: Mapping[str, int], kind: type[AllAtOnce | OneByOne]
) -> BpfObject:
    programs = BpfObject(tls_path(core.path))
    try:
        kind.prepare(programs)
        known = programs.constants & constants.keys()
        programs.set_rodata({name: constants[name] for name in known})
        programs.share_maps(core)
        programs.load()
    except BaseException:
        programs.close()
        raise
    return programs
