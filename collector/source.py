"""The running kernel as a source of records: the eBPF object, its rings and counters."""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector import abi
from collector.attach import LISTENERS, attach_first, missing_hooks
from collector.btf import parse_object
from collector.build import hash_layout
from collector.config import object_paths
from collector.drops import drop_reasons
from collector.figures import POINTS, STAGE_FIGURES, measured
from collector.payload_ring import NO_PIECES, PayloadRing, create_payload_ring
from collector.ports import Drained
from collector.ringbuf import Ring, SequenceTracker, create_ring
from collector.stages import OFF, Stages, start_stages, unseen_in_ip
from collector.tls.watcher import Watcher, start_tls
from collector.watching import KernelScope
from schemas.errors import BpfError, ConfigError, DecodeError, LayoutMismatch
from schemas.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from collector.attach import Hook, Missing
    from collector.bpf_object import BpfObject
    from collector.config import CollectorConfig
    from collector.conversations import Verdict
    from schemas.tls import Unreadable

__all__ = ["ITERATORS", "KernelSource", "require_layout", "ring_sizes"]

ITERATORS: Final = (LISTENERS, "find_sockets")
"""Programs that find what is older than the collector, in the order to run them."""

_LOG: Final = logging.getLogger("podwire.collector")
_CROWDED: Final = 0.25
_KINDS: Final = len(abi.Kind)
_OUTCOMES: Final = len(abi.COUNTS.names or ())


def ring_sizes(config: CollectorConfig) -> dict[str, int]:
    """Return the bytes of each ring map.

    Raises:
        ConfigError: If one is not a power of two, which the kernel demands.
    """
    sizes = {
        "connections": config.connection_ring_bytes,
        "transfers": config.transfer_ring_bytes,
        "processes": config.process_ring_bytes,
        "payloads": config.payload_ring_bytes if config.protocols != "off" else mmap.PAGESIZE,
        "drops": config.drop_ring_bytes,
    }
    for name, size in sizes.items():
        if size & (size - 1):
            key = f"collector.{name.rstrip('s')}_ring_bytes"
            raise ConfigError(key.replace("processe_", "process_"), f"{size} is no power of two")
    return sizes


def require_layout(path: Path) -> None:
    """Check that an object writes the records that `collector.abi` reads.

    Raises:
        LayoutMismatch: If it does not, or is no object of podwire at all.
    """
    try:
        found = hash_layout(parse_object(path.read_bytes()))
    except DecodeError as error:
        raise LayoutMismatch(str(path), "an object of podwire", error.reason) from error
    if found != abi.LAYOUT_HASH:
        raise LayoutMismatch(f"record layout of {path}", abi.LAYOUT_HASH, found)


def _needed(hooks: Sequence[Hook]) -> list[Missing]:
    # The kernel need not have every function: some are of other versions.
    return [hook for hook in missing_hooks(hooks) if hook.point in POINTS]


class KernelSource:
    """Records of the live kernel; `measured` and `measured_ipv6` say which figures they can carry.

    `drop_reasons` are the names of its reasons by number.

    Args:
        config: Which object, hooks and rings.
        scope: What is watched from the first record on; None is everything.

    Raises:
        LayoutMismatch: If the object writes other records than this package reads.
        BpfError: If the programs cannot be loaded or a core hook is missing.
        UnsupportedFeature: If the machine lacks libbpf or an object.
    """

    def __init__(self, config: CollectorConfig, scope: NDArray[Any] | None = None) -> None:
        sizes = ring_sizes(config)
        constants = {
            "podwire_own_pid": 0 if config.own_traffic else os.getpid(),
            "podwire_id_base": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            "podwire_stages": int(config.stages != "off"),
            "podwire_payloads": int(config.protocols != "off"),
            "podwire_tls": int(config.tls != "off" and config.protocols != "off"),
        }
        self._rings: dict[str, Ring] = {}
        self._payloads: PayloadRing | None = None
        self._finder: threading.Thread | None = None
        paths = object_paths(config)
        for path in paths:
            require_layout(path)
        self.stages = Stages(None)
        self.tls = Watcher(Path(config.proc_path))

        def prepare(core: BpfObject) -> None:
            # Before the core makes records: the first must not lack what hooks attached later would
            # have added, and no ring fills up while the hooks are tried.
            self._close_others()
            self._scope = KernelScope(core)
            self._scope.set(scope)
            self.stages = start_stages(config, core, constants)
            self.tls = start_tls(config, core, constants)

        try:
            self._object, self.hooks, passed_over = attach_first(paths, constants, sizes, prepare)
        except BaseException:
            self._close_others()
            raise
        hooks = (*self.hooks, *self.stages.hooks)
        self.measured, self.measured_ipv6 = measured(hooks), measured(hooks, family=6)
        self.drop_reasons = drop_reasons()
        if passed_over:
            _LOG.warning("using %s: %s", self._object.path.name, passed_over)
        self._counted = np.zeros((_KINDS, _OUTCOMES), np.uint64)
        self._skipped: Counter[str] = Counter()
        self._unseen = 0
        self.sequences = {name: SequenceTracker() for name in sizes}
        mapped = config.ring_reader == "mapped"
        layouts = {
            "connections": abi.CONNECTION_RECORD,
            "transfers": abi.TRANSFER_RECORD,
            "processes": abi.PROCESS_RECORD,
            "drops": abi.DROP_RECORD,
        }
        try:
            for name, layout in layouts.items():
                fd, size = self._object.map_fd(name), sizes[name]
                self._rings[name] = create_ring(
                    name, fd, size, layout, self._object.library, mapped
                )
            fd, size = self._object.map_fd("payloads"), sizes["payloads"]
            self._payloads = create_payload_ring("payloads", fd, size, self._object.library, mapped)
        except BaseException:
            self.close()
            raise
        # Beside the drain, which makes room for what the iterators announce: a node may have more
        # open sockets than the ring holds.
        self._finder = threading.Thread(target=self._find_older, name="older-sockets", daemon=True)
        self._finder.start()
        self.tls.start()
        attached = sum(hook.attached for hook in (*self.hooks, *self.stages.hooks))
        gauge("podwire_collector_hooks").labels("attached").set(attached)
        gauge("podwire_collector_hooks").labels("missing").set(len(self.missing_hooks))

    def _find_older(self) -> None:
        attached = {hook.program for hook in self.hooks if hook.attached}
        for program in ITERATORS:
            if program not in attached:
                continue
            try:
                self._object.run_iterator(program)
            except BpfError as error:
                # Such sockets are then recognised at their first use.
                counter("podwire_errors_total").labels("collector", program).inc()
                _LOG.warning("older connections were not looked up: %s", error)

    @property
    def missing_hooks(self) -> list[Missing]:
        """Hooks that this kernel does not take and some figure needs."""
        return missing_hooks(self.hooks) + _needed(self.stages.hooks)

    def log_missing(self) -> None:
        """Say what will not be measured."""
        for hook in missing_hooks(self.hooks):
            _LOG.warning("hook %s is not available: %s", hook.target, hook.reason)
        # One line for all of the stages: what a kernel forbids, it mostly forbids everywhere.
        lost = sum(figure not in self.measured for figure in STAGE_FIGURES)
        if not lost:
            return
        reasons = [self.stages.reason]
        if self.stages.object is not None:
            reasons = [hook.reason for hook in _needed(self.stages.hooks)]
        _LOG.log(
            logging.INFO if set(reasons) == {OFF} else logging.WARNING,
            "%d of %d figures of layers 2 to 4 are not measured (see podwire doctor): %s",
            lost,
            len(STAGE_FIGURES),
            "; ".join(dict.fromkeys(reasons)),
        )

    def drain(self) -> Drained:
        """Take what is in the rings.

        Transfers, drops and payload come first: whatever was announced before them is then still
        to be read. Execs and exits come last, so that none is missing that is older than a
        connection.
        """
        transfers = self._drain("transfers")
        drops = self._drain("drops")
        pieces = NO_PIECES
        if self._payloads is not None:
            pieces = self._payloads.drain()
            self.sequences["payloads"].add(pieces.records["cpu"], pieces.records["sequence"])
        connections = self._drain("connections")
        processes = self._drain("processes")
        if len(processes):
            self.tls.notice(processes)
        return Drained(connections, transfers, processes, drops, pieces)

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Say what need not be captured any more; that it is not heard costs only time."""
        for verdict in verdicts:
            value = np.zeros((), abi.VERDICT)
            for place, position in enumerate((verdict.reads, verdict.writes)):
                if position is not None:
                    value["position"][place] = position
                    value["is_skipping"][place] = 1
            value["is_unwanted"] = verdict.is_unwanted
            holder, name = self._object, "verdicts"
            if verdict.is_inside_tls and self.tls.object is not None:
                holder, name = self.tls.object, "tls_verdicts"
            try:
                key = verdict.connection_id.to_bytes(8, sys.byteorder)
                holder.update_map(name, key, value.tobytes())
            except BpfError as error:
                counter("podwire_errors_total").labels("collector", "verdict").inc()
                _LOG.debug("a verdict was not heard: %s", error)

    def unreadable(self, pids: Sequence[int]) -> Mapping[int, Unreadable]:
        """Why what processes say inside TLS is not seen in clear; see `Watcher.unreadable`."""
        return self.tls.unreadable(pids)

    def watch(self, scope: NDArray[Any] | None) -> None:
        """Put another monitoring scope in force, as of `collector.watching.kernel_table`.

        Raises:
            BpfError: If the kernel refuses.
        """
        self._scope.set(scope)

    def refuse(self, pids: Iterable[int]) -> None:
        """Leave out what these processes do, until they end.

        Raises:
            BpfError: If the kernel refuses.
        """
        self._scope.refuse(pids)

    def admit(self, pids: Iterable[int]) -> None:
        """Watch processes that were refused.

        Raises:
            BpfError: If the kernel refuses.
        """
        self._scope.admit(pids)

    def let_go(self, ids: Iterable[int]) -> None:
        """Take connections that are left out for others once they come back.

        Raises:
            BpfError: If the kernel refuses.
        """
        self._scope.let_go(ids)

    def _drain(self, name: str) -> NDArray[Any]:
        records = self._rings[name].drain()
        self.sequences[name].add(records["cpu"], records["sequence"])
        return records

    @property
    def is_crowded(self) -> bool:
        """Whether a ring was a quarter full at the last drain."""
        return any(ring.used > ring.size * _CROWDED for ring in self._every_ring())

    def _every_ring(self) -> tuple[Ring | PayloadRing, ...]:
        payloads = () if self._payloads is None else (self._payloads,)
        return (*self._rings.values(), *payloads)

    def counts(self) -> NDArray[np.uint64]:
        """Return the increments of the kernel's counters, summed over CPUs, one row a kind."""
        self._count_skipped()
        self._count_unseen()
        for ring in self._every_ring():
            gauge("podwire_collector_ring_used_bytes").labels(ring.name).set(ring.used)
            missing = self.sequences[ring.name].missing
            gauge("podwire_collector_ring_missing_records").labels(ring.name).set(missing)
        now = np.stack(
            [
                np.frombuffer(self._object.read_percpu("counts", kind), np.uint64)
                .reshape(-1, _OUTCOMES)
                .sum(axis=0, dtype=np.uint64)
                for kind in range(_KINDS)
            ]
        )
        increments = now - self._counted
        self._counted = now
        return increments

    def _count_skipped(self) -> None:
        now: Counter[str] = Counter()
        try:
            for opened in (self._object, self.stages.object):
                if opened is not None:
                    now.update(opened.recursion_misses())
                    now.update(opened.probe_misses())
        except BpfError as error:
            counter("podwire_errors_total").labels("collector", "program_info").inc()
            _LOG.debug("skipped runs are not known: %s", error)
            return
        for program, count in now.items():
            # What is detached tells nothing of its probe any more.
            more = max(count - self._skipped[program], 0)
            counter("podwire_collector_program_skipped_total").labels(program).inc(more)
            self._skipped[program] += more

    def _count_unseen(self) -> None:
        if self.stages.object is None:
            return
        now = unseen_in_ip(self.stages.object)
        counter("podwire_collector_packets_unseen_in_ip_total").inc(now - self._unseen)
        self._unseen = now

    def detach(self) -> None:
        """Detach every program; the rings can still be drained."""
        if self._finder is not None:
            self._finder.join()
        self.tls.stop()
        # What the stages add to a flow, the core tells: they end first.
        if self.stages.object is not None:
            self.stages.object.detach()
        self._object.detach()

    def close(self) -> None:
        """Give everything back to the kernel; safe to repeat."""
        if self._finder is not None:
            self._finder.join()
        for ring in self._every_ring():
            ring.close()
        self._rings.clear()
        self._payloads = None
        self._close_others()
        self._object.close()

    def _close_others(self) -> None:
        self.tls.close()
        if self.stages.object is not None:
            self.stages.object.close()
