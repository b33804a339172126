"""Wires the collector: rings to connection table to batches to Kafka, in one loop.

Every ``drain_interval_s`` the rings are emptied and connections entered; every
``publish_interval_s``, or earlier when much has come, what was drained becomes batches. Nothing in
the loop waits for Kafka. The last batch of a clean stop is marked final and tells of everything
that happened to the earlier ones.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from collector.abi import ConnectionEvent, ProcessEvent
from collector.accounts import as_undelivered, kernel_entries
from collector.batches import BatchBuilder, Limits, finished
from collector.connections import ConnectionTable
from collector.conntrack import NOBODY
from collector.conversations import Conversations
from collector.heap import trim_heap
from collector.mates import Mates
from collector.names import NameTable
from collector.owners import Owners
from collector.protocols.calls import Settings
from collector.tally import Tally
from collector.tls.sessions import Sessions
from collector.watching import Watching
from schemas.clock import ClockAnchor
from schemas.errors import ConfigError
from schemas.events import encode_batch
from schemas.telemetry import RateLimited, counter, gauge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from collector.batches import Run
    from collector.config import CollectorConfig
    from collector.containers import ContainerResolver
    from collector.conversations import Found
    from collector.netlink import Conntrack
    from collector.ports import Drained, Sender, Source
    from collector.recording import Recorder
    from collector.watching import Pods
    from schemas.clock import Clock
    from schemas.monitoring import ScopeFile
    from schemas.telemetry import Health

__all__ = ["Pipeline"]

_LOG: Final = logging.getLogger("podwire.collector")
_MAX_NAMES: Final = 65_536
_FLUSH_SHARE: Final = 0.7
_MANY: Final = 20_000
_INTERFACES_EVERY: Final = 60
"""Batches from one that tells of the node's interfaces to the next."""
_STEP_WORTH_SAYING_NS: Final = 50_000_000


class Pipeline:
    """One run of the collector."""

    def __init__(
        self,
        config: CollectorConfig,
        run: Run,
        source: Source,
        sender: Sender,
        resolver: ContainerResolver,
        clock: Clock,
        health: Health,
        recorder: Recorder | None = None,
        conntrack: Conntrack | None = None,
        scope: ScopeFile | None = None,
        pods: Pods | None = None,
    ) -> None:
        self._config = config
        self._run = run
        self._source = source
        self._sender = sender
        self._resolver = resolver
        self._clock = clock
        self._health = health
        self._recorder = recorder
        self._conntrack = conntrack
        self._exited: list[int] = []
        self._anchor = ClockAnchor.sample(clock)
        self._names = NameTable()
        self.table = ConnectionTable(config.max_connections)
        self._watching: Watching | None = None
        if scope is not None and scope.path is not None:
            self._watching = Watching(scope, run.node, source, self.table, self._names, pods)
        self._owners = Owners(
            self.table, self._names, resolver, self._watching, config.excluded_run
        )
        self._conversations = Conversations(
            self.table,
            Settings(keep_query=config.keep_query),
            config.max_conversations,
        )
        self._sessions = Sessions(self.table, self._names, source)
        self._mates = Mates(self.table)
        self._calls: list[Found] = []
        self._held_calls: list[Found] = []
        self._builder = BatchBuilder(
            run,
            self.table,
            self._names,
            Limits(events=config.batch_max_events),
            measured=source.measured,
            measured_ipv6=source.measured_ipv6,
            reasons=source.drop_reasons,
        )
        self._tally = Tally()
        self.ledger = self._tally.ledger
        self.sequence = 0
        self._connections: list[NDArray[Any]] = []
        self._transfers: list[NDArray[Any]] = []
        self._drops: list[NDArray[Any]] = []
        self._pending = 0
        self._silent = np.empty(0, np.uint64)
        self._watermark_ns = 0
        self._limited = RateLimited(_LOG)

    def run(self, stop: threading.Event) -> None:
        """Drain and publish until told to stop, then finish."""
        config, clock = self._config, self._clock
        step = int(config.drain_interval_s * 1e9)
        publish_step = int(config.publish_interval_s * 1e9)
        now = clock.monotonic_ns()
        next_publish = now + publish_step
        while not stop.is_set():
            started = clock.monotonic_ns()
            self.drain()
            now = clock.monotonic_ns()
            if now >= next_publish or self._pending >= config.batch_max_events:
                self.publish()
                # Now, as hardly anything waits that was drained under the old anchor.
                self.read_clocks()
                if now >= next_publish:
                    next_publish = max(next_publish + publish_step, now)
            self._sender.poll()
            if not self._source.is_crowded:
                stop.wait(max(0, started + step - clock.monotonic_ns()) / 1e9)
        self.finish()

    def drain(self) -> None:
        """Empty the rings and enter new connections and processes."""
        # Whatever is submitted after this moment ended at most the margin before it.
        margin = int(self._config.watermark_margin_s * 1e9)
        self._watermark_ns = self._clock.monotonic_ns() + self._anchor.offset_ns - margin
        drained = self._source.drain()
        self._enter_processes(drained.processes)
        if len(drained.connections):
            self._enter_connections(drained.connections)
        # An empty first array keeps the record layout for a publish without any record.
        if len(drained.connections) or not self._connections:
            self._connections.append(drained.connections)
        if len(drained.transfers) or not self._transfers:
            self._transfers.append(drained.transfers)
        if len(drained.drops) or not self._drops:
            self._drops.append(drained.drops)
        self._pending += sum(map(len, (drained.connections, drained.transfers, drained.drops)))
        self._converse(drained)

    def _converse(self, drained: Drained) -> None:
        conversations = self._conversations
        ended = drained.connections[finished(drained.connections)]
        ended_ids = ended["connection_id"].tolist()
        if ended_ids:
            conversations.end(ended_ids, ended["end_ns"].tolist())
        conversations.apply(self._sessions.greet(drained.payloads))
        self._sessions.end(ended_ids)
        self._sessions.explain(drained.connections)
        calls = conversations.take_calls()
        self._calls += calls
        self._pending += len(calls)
        verdicts = conversations.take_verdicts()
        if verdicts:
            self._source.tell(verdicts)
        self._tally.count_pieces(conversations, len(drained.payloads))

    def _enter_processes(self, processes: NDArray[Any]) -> None:
        count = len(processes)
        if count:
            other = processes[processes["event"] != ProcessEvent.MAPPED]
            self._resolver.forget(np.unique(other["pid"]).tolist())
            exited = processes["pid"][processes["event"] == ProcessEvent.EXIT].tolist()
            self._exited += exited
            if self._watching is not None:
                self._watching.forget(exited)
            self._resolver.learn(np.unique(processes["cgroup_id"]).tolist())
            self.ledger.passed("collector", "process", entered=count, left=count)

    def _enter_connections(self, records: NDArray[Any]) -> None:
        self._resolver.learn(np.unique(records["cgroup_id"]).tolist())
        before = self.table.evicted
        _, changed = self.table.apply(records)
        if self.table.evicted > before:
            evicted = self.table.evicted - before
            counter("podwire_errors_total").labels("collector", "connection_evicted").inc(evicted)
            text = "collector.max_connections is reached; %d connections unused the longest are out"
            self._limited.warning(text, evicted)
        self._owners.enter(changed)
        if self._conntrack is not None:
            # Now, as processes may be gone with the next look.
            self._conntrack.follow(self.table.rows[changed])

    def publish(self, final: bool = False, hold: bool = True) -> None:
        """Make batches of what was drained since the last call and offer them.

        Args:
            final: Whether this is the last time.
            hold: Whether what a fresh connection to this node did may wait for its other end.
        """
        if self._watching is not None:
            self._conversations.forget(self._watching.look())
        connections = _joined(self._connections)
        transfers = _joined(self._transfers)
        drops = _joined(self._drops)
        self._drops = [drops[:0].copy()]
        self._connections, self._transfers = [connections[:0].copy()], [transfers[:0].copy()]
        self._pending = 0
        self._owners.adopt(transfers)
        self._owners.decide()
        if self._conntrack is not None:
            self._translate(self._conntrack, connections)
            # Only now: what they did last is translated where they led to.
            self._conntrack.forget(self._exited)
        self._exited.clear()
        connections, transfers, drops = self._pair(connections, transfers, drops, hold)
        self.ledger.add(kernel_entries(self._source.counts()))
        self._tally.tell_again(self._sender.take_failed())
        events = len(connections) + len(transfers)
        calls, self._calls, self._held_calls = self._calls, self._held_calls, []
        batches = self._builder.build(
            connections,
            transfers,
            self._anchor,
            self._watermark(),
            self.ledger,
            final,
            calls,
            drops,
        )
        for batch in batches:
            header = batch.header
            header.final = final and batch is batches[-1]
            header.sequence = self.sequence
            if self.sequence % _INTERFACES_EVERY == 0:
                header.interfaces = list(self._run.interfaces)
            message = encode_batch(batch)
            if not self._sender.offer(self._run.node, message, header.ledger):
                self.ledger.add(as_undelivered(header.ledger))
                continue
            self.sequence += 1
            self._tally.export(header.ledger, is_last=batch is batches[-1])
            self._record(message)
        self.table.retire(connections["connection_id"][finished(connections)])
        self.table.sweep()
        self._compact_names()
        gauge("podwire_collector_connections").set(len(self.table))
        gauge("podwire_collector_conversations").set(len(self._conversations))
        self._tally.count_gaps(self._conversations)
        if events > _MANY:
            trim_heap()  # what so many needed, the next second need not
        self._health.progress()

    def _watermark(self) -> int:
        # No call that a close under way ends is older than the close, nor any event of a connection
        # that is held than its begin; but what stays silent is added to its minute later.
        held_ns = self._conversations.held_since_ns
        times = [self._watermark_ns]
        if held_ns is not None:
            times.append(held_ns + self._anchor.offset_ns - 1)
        for held in (self._connections[0], self._transfers[0], self._drops[0]):
            ends = held["end_ns"][~np.isin(held["connection_id"], self._silent)]
            if len(ends):
                times.append(int(ends.min()) + self._anchor.offset_ns - 1)
        return min(times)

    def _record(self, message: bytes) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.write(message)
        except ConfigError as error:
            # A full disk ends the recording, not the watching; closing the file says it again.
            self._recorder = None
            counter("podwire_errors_total").labels("collector", "record").inc()
            _LOG.error("the recording ends here: %s", error)

    def _translate(self, conntrack: Conntrack, records: NDArray[Any]) -> None:
        # Conntrack knows a connection before its first record can be drained.
        conntrack.poll()
        begun = records["connection_id"][records["event"] != ConnectionEvent.CLOSED]
        slots = np.unique(self.table.find(begun))
        slots = slots[slots >= 0]
        rows = self.table.rows
        for slot, peer in zip(slots.tolist(), conntrack.peers(rows[slots]), strict=True):
            if peer != NOBODY:
                rows["peer"][slot] = self.table.peers.number(peer)

    def _pair(
        self,
        connections: NDArray[Any],
        transfers: NDArray[Any],
        drops: NDArray[Any],
        hold: bool,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        # Who is at the other end and what is inside TLS, before anything is told; what has to wait
        # is drained again.
        undecided = self._owners.undecided
        held = self._mates.pair(connections, self._anchor, undecided)
        held = np.union1d(held, undecided)
        ended = connections["connection_id"][finished(connections)]
        now_ns = self._clock.monotonic_ns()
        inside = self._sessions.undecided(ended, transfers, now_ns)
        self._silent = np.setdiff1d(self._sessions.patient, held)
        held = np.union1d(held, inside)
        if not hold or not len(held):
            return connections, transfers, drops
        told = []
        for kept, records in (
            (self._connections, connections),
            (self._transfers, transfers),
            (self._drops, drops),
        ):
            waits = np.isin(records["connection_id"], held)
            kept[:] = [records[waits]]
            told.append(records[~waits])
        ids = frozenset(held.tolist())
        self._held_calls = [call for call in self._calls if call[0] in ids]
        self._calls = [call for call in self._calls if call[0] not in ids]
        return told[0], told[1], told[2]

    def _compact_names(self) -> None:
        rows = self.table.rows
        if len(self.table.peers) > _MAX_NAMES:
            live = self.table.live_slots()
            rows["peer"][live] = self.table.peers.keep(rows["peer"][live])
        if len(self._names) > _MAX_NAMES:
            live = self.table.live_slots()
            columns = "container", "process", "server_name", "mate"
            kept = self._names.keep(*(rows[name][live] for name in columns))
            for name, numbers in zip(columns, kept, strict=True):
                rows[name][live] = numbers

    def read_clocks(self) -> None:
        """Read both clocks together again and report how far they moved apart."""
        anchor = ClockAnchor.sample(self._clock)
        step = anchor.offset_ns - self._anchor.offset_ns
        self._anchor = anchor
        gauge("podwire_collector_clock_step_ns").set(step)
        if abs(step) > _STEP_WORTH_SAYING_NS:
            _LOG.warning("the clock was set: it moved by %.3f s", step / 1e9)

    def finish(self) -> None:
        """Stop the hooks, publish the rest, and say in a final batch what became of all."""
        self._source.detach()
        for _ in range(2):
            # A program may still be running on another CPU when its link is gone.
            threading.Event().wait(self._config.drain_interval_s)
            self.drain()
        self._conversations.finish()
        self._calls += self._conversations.take_calls()
        self._resolver.hurry()
        self.publish(hold=False)
        timeout_s = self._config.stop_timeout_s
        if self._sender.flush(timeout_s * _FLUSH_SHARE):
            self._sender.abandon()
        self.publish(final=True)
        left = self._sender.flush(timeout_s * (1 - _FLUSH_SHARE))
        if left:
            _LOG.warning("kafka did not take the last %d batches in time", left)
            self._sender.abandon()


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
