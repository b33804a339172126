"""Batches to messages, held against plain loops over the rows through the generated code."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.columns import UNMEASURED_U32, UNMEASURED_U64
from schemas.events import (
    FIGURE_WIDTH,
    READ_FIGURES,
    WRITE_FIGURES,
    NetInterface,
    decode_batch,
    encode_batch,
)
from schemas.pb import skywalking_accesslog_pb2 as pb
from sink.oap.choices import Choices, namespace_of
from sink.oap.convert import Limits, convert
from tests.oap.batches import AT, MINUTE_NS, NAMES, random_batch
from tests.schemas.strategies import batches

EVERYTHING = Choices(same_service="send", incomplete=True, end_minute=False)
UNLIMITED = (Limits(), 1.0)
MOVES = ("read", "write")
READ_CALLS = {1: "Read", 2: "Readv", 3: "RecvFrom", 4: "RecvMsg", 5: "RecvMmsg"}
WRITE_CALLS = {6: "Write", 7: "Writev", 8: "SendTo", 9: "SendMsg", 10: "SendMmsg", 11: "SendFile"}
READ_L2 = {
    "totalPackageCount": "read_packet_count",
    "totalPackageSize": "read_packet_size",
    "totalPackageToQueueDuration": "read_packet_to_queue_duration",
    "totalRcvPackageFromQueueDuration": "read_packet_from_queue_duration",
}
READ_L3 = {
    "totalDuration": "read_l3_duration",
    "totalRecvDuration": "read_l3_recv_duration",
    "totalLocalDuration": "read_l3_local_duration",
    "totalNetFilterCount": "read_netfilter_count",
    "totalNetFilterDuration": "read_netfilter_duration",
}
READ_L4 = {"totalDuration": "read_l4_duration"}
WRITE_L4 = {
    "totalDuration": "write_l4_duration",
    "totalTransmitPackageCount": "write_packet_count",
    "totalRetransmitPackageCount": "write_retransmit_packet_count",
    "totalPackageSize": "write_packet_size",
}
WRITE_L3 = {
    "totalDuration": "write_l3_duration",
    "totalLocalDuration": "write_l3_local_duration",
    "totalOutputDuration": "write_l3_output_duration",
    "totalResolveMACCount": "resolve_mac_count",
    "totalResolveMACDuration": "resolve_mac_duration",
    "totalNetFilterCount": "write_netfilter_count",
    "totalNetFilterDuration": "write_netfilter_duration",
}
WRITE_L2 = {
    "totalDuration": "write_l2_duration",
    "totalEnterQueueBufferCount": "write_l2_enter_queue_count",
    "totalReadySendDuration": "write_l2_ready_send_duration",
    "totalNetDeviceSendDuration": "write_l2_netdevice_send_duration",
}


class Plain:
    """One row at a time, as the reference of the protocol says it."""

    def __init__(self, batch, boot_ns, choices=EVERYTHING):
        self.batch, self.boot_ns, self.choices = batch, boot_ns, choices

    def stamp(self, ns):
        return pb.EBPFTimestamp(offset=pb.EBPFOffsetTimestamp(offset=ns - self.boot_ns))

    def span(self, end_ns, duration_ns):
        length = 0 if duration_ns == UNMEASURED_U64 else int(duration_ns)
        start, end = int(end_ns) - length, int(end_ns)
        if self.choices.end_minute:
            start = max(start, end // 60_000_000_000 * 60_000_000_000)
        return {"startTime": self.stamp(start), "endTime": self.stamp(start + length)}

    def opens(self):
        for row in range(self.batch.opens.rows):
            opens = self.batch.opens
            span = self.span(opens.end_ns[row], opens.duration_ns[row])
            if opens.kind[row] == 1:
                good = opens.error[row] == 0
                log = pb.AccessLogKernelLog(
                    connect=pb.AccessLogKernelConnectOperation(**span, success=bool(good))
                )
            else:
                log = pb.AccessLogKernelLog(accept=pb.AccessLogKernelAcceptOperation(**span))
            yield int(opens.connection[row]), log

    def closes(self):
        closes = self.batch.closes
        for row in range(closes.rows):
            span = self.span(closes.end_ns[row], closes.duration_ns[row])
            close = pb.AccessLogKernelCloseOperation(**span, success=True)
            yield int(closes.connection[row]), pb.AccessLogKernelLog(close=close)

    def losses(self):
        """By row of the write: packets by reason."""
        transfers, drops, names = self.batch.transfers, self.batch.drops, self.batch.names
        found = defaultdict(Counter)
        for drop in range(drops.rows):
            writes = [
                (int(transfers.end_ns[row]), row)
                for row in range(transfers.rows)
                if transfers.direction[row] == 2
                and transfers.call[row] != 14
                and transfers.connection[row] == drops.connection[drop]
            ]
            before = [write for write in writes if write[0] <= drops.end_ns[drop]]
            if writes:
                row = max(before)[1] if before else min(writes)[1]
                found[row][names[drops.reason[drop]]] += int(drops.packets[drop])
        return found

    def transfers(self):
        transfers, losses = self.batch.transfers, self.losses()
        for row in range(transfers.rows):
            if transfers.call[row] == 14:
                continue
            span = self.span(transfers.end_ns[row], transfers.duration_ns[row])
            read = transfers.direction[row] == 1
            names = READ_FIGURES if read else WRITE_FIGURES
            figures = {
                name: int(transfers.figures[row, place])
                for place, name in enumerate(names)
                if transfers.figures[row, place] != UNMEASURED_U32
            }

            def layer(kind, fields, figures=figures, **more):
                known = {field: figures[f] for field, f in fields.items() if f in figures}
                if not known and not more.get("measured"):
                    return None
                more.pop("measured", None)
                return kind(**known, **more)

            call = int(transfers.call[row])
            if read:
                operation = pb.AccessLogKernelReadOperation(
                    **span,
                    syscall=READ_CALLS.get(call, "Read"),
                    l2Metrics=layer(pb.AccessLogKernelReadL2Metrics, READ_L2),
                    l3Metrics=layer(pb.AccessLogKernelReadL3Metrics, READ_L3),
                    l4Metrics=layer(pb.AccessLogKernelReadL4Metrics, READ_L4),
                )
                log = pb.AccessLogKernelLog(read=operation)
            else:
                lost = figures.get("write_lost_packet_count")
                told = [("", lost)] if lost else []
                told += sorted(losses[row].items(), key=lambda item: NAMES.index(item[0]))
                operation = pb.AccessLogKernelWriteOperation(
                    **span,
                    syscall=WRITE_CALLS.get(call, "Write"),
                    l4Metrics=layer(
                        pb.AccessLogKernelWriteL4Metrics,
                        WRITE_L4,
                        lossPackageMetrics=[
                            pb.AccessLogLossPackageMetrics(location=where, count=count)
                            for where, count in told
                        ],
                        measured=told or lost is not None,
                    ),
                    l3Metrics=layer(pb.AccessLogKernelWriteL3Metrics, WRITE_L3),
                    l2Metrics=layer(pb.AccessLogKernelWriteL2Metrics, WRITE_L2),
                )
                log = pb.AccessLogKernelLog(write=operation)
            yield int(transfers.connection[row]), log

    def requests(self):
        requests, names = self.batch.requests, self.batch.names
        for row in range(requests.rows):
            get = {name: getattr(requests, name)[row] for name, _, _ in requests.specs()}

            def size(value, missing):
                return 0 if value == missing else int(value)

            path = names[get["path"]]
            if not path:
                at = get["endpoint"]
                path = "{unknown}" if at == UNMEASURED_U32 else names[at]
            provider = {2: "Zipkin", 3: "SkyWalking"}.get(int(get["trace_provider"]))
            trace = None
            if provider:
                trace = pb.AccessLogTraceInfo(
                    provider=provider,
                    traceId=names[get["trace_id"]],
                    traceSegmentId=names[get["segment_id"]],
                    spanId=names[get["span_id"]],
                )
            http = pb.AccessLogHTTPProtocol(
                **self.span(get["end_ns"], get["end_ns"] - get["start_ns"]),
                version="HTTP2" if get["version"] == 20 else "HTTP1",
                request=pb.AccessLogHTTPProtocolRequest(
                    method={"GET": "Get", "POST": "Post"}.get(names[get["method"]], "Get"),
                    path=path,
                    host=names[get["host"]],
                    sizeOfHeadersBytes=size(get["request_header_size"], UNMEASURED_U32),
                    sizeOfBodyBytes=size(get["request_body_size"], UNMEASURED_U64),
                    trace=trace,
                ),
                response=pb.AccessLogHTTPProtocolResponse(
                    statusCode=int(get["status"]),
                    sizeOfHeadersBytes=size(get["response_header_size"], UNMEASURED_U32),
                    sizeOfBodyBytes=size(get["response_body_size"], UNMEASURED_U64),
                ),
            )
            yield int(get["connection"]), pb.AccessLogProtocolLogs(http=http)

    def connection(self, row):
        rows, parties, names = self.batch.connections, self.batch.parties, self.batch.names
        role = int(rows.role[row])
        if role == 0:
            role = 2 if rows.local_port[row] < rows.remote_port[row] else 1
        versions = self.batch.requests.version[self.batch.requests.connection == row]
        flags = self.batch.requests.flags[self.batch.requests.connection == row]
        translated = rows.translated_address[row].any()
        port = rows.translated_port[row] if translated else rows.remote_port[row]

        def address(service, pod, container, process, port):
            if names[service] == "192.0.2.7":
                return pb.ConnectionAddress(ip=pb.IPAddress(host="192.0.2.7", port=port))
            kubernetes = pb.KubernetesProcessAddress(
                serviceName=names[service],
                podName=names[pod],
                containerName=container,
                processName=process,
                port=port,
            )
            return pb.ConnectionAddress(kubernetes=kubernetes)

        container = parties.local_container[row]
        protocol = "TCP"
        if len(versions):
            protocol = "HTTP_2" if versions[-1] == 20 else "HTTP_1"
        return pb.AccessLogConnection(
            local=address(
                parties.local_service[row],
                parties.local_instance[row],
                "" if container == UNMEASURED_U32 else names[container],
                names[rows.process[row]],
                int(rows.local_port[row]),
            ),
            remote=address(
                parties.remote_service[row], parties.remote_instance[row], "", "", int(port)
            ),
            role="server" if role == 2 else "client",
            tlsMode="TLS" if rows.flags[row] & 2 or flags.any() else "Plain",
            protocol=protocol,
        )


def parsed(stream):
    return [pb.EBPFAccessLogMessage.FromString(data) for data in stream.messages]


def told(streams):
    """Logs with the connection that an OAP takes them for, checking the rules of a stream."""
    logs = []
    for stream in streams:
        connection, count = None, 0
        for place, message in enumerate(parsed(stream)):
            assert message.HasField("node") == (place == 0)
            if message.HasField("connection"):
                connection = message.connection
            assert connection is not None
            logs += [(connection.SerializeToString(), log) for log in message.kernelLogs]
            count += len(message.kernelLogs)
            if message.HasField("protocolLog"):
                logs.append((connection.SerializeToString(), message.protocolLog))
                count += 1
        assert stream.logs == count
        assert stream.size == sum(map(len, stream.messages))
    return logs


def counted(logs):
    return Counter((key, log.SerializeToString(deterministic=True)) for key, log in logs)


def without_rows_of_no_call(batch):
    return replace(batch, transfers=batch.transfers.take(batch.transfers.call != 14))


def without_internal(batch):
    parties = replace(batch.parties, internal=np.zeros_like(batch.parties.internal))
    return replace(batch, parties=parties)


def boot_ns(stream):
    boot = parsed(stream)[0].node.bootTime
    assert boot.nanos == 0
    return boot.seconds * 10**9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("end_minute", [True, False])
def test_every_row_is_told_as_a_plain_loop_tells_it(seed, staged, end_minute):
    batch = without_rows_of_no_call(without_internal(random_batch(seed=seed, staged=staged)))
    # One protocol for each connection: the last of several would win.
    requests = replace(batch.requests, version=np.full(batch.requests.rows, 20, "u1"))
    batch = replace(batch, requests=requests)
    choices = replace(EVERYTHING, end_minute=end_minute)
    converted = convert([batch], choices, Limits(), 1.0)
    (stream,) = converted.streams
    plain = Plain(batch, boot_ns(stream), choices)
    wanted = [*plain.opens(), *plain.closes(), *plain.transfers(), *plain.requests()]
    wanted = [(plain.connection(row).SerializeToString(), log) for row, log in wanted]
    assert counted(told(converted.streams)) == counted(wanted)
    assert converted.events == stream.logs == len(wanted)
    assert not converted.dropped


def test_node_is_told_once_with_a_boot_time_of_whole_seconds():
    batch = random_batch()
    (stream,) = convert(
        [batch],
        Choices(exclude_namespaces=("kube-system",)),
        Limits(),
        1.0,
        [NetInterface(1, "lo", 65_536), NetInterface(2**32 - 1, "eth0", 2**31)],
    ).streams
    first, *others = parsed(stream)
    assert first.node.name == "node-a"
    told = [(each.index, each.name, each.mtu) for each in first.node.netInterfaces]
    assert told == [(1, "lo", 65_536), (2**31 - 1, "eth0", 2**31 - 1)]
    assert first.node.policy.excludeNamespaces == ["kube-system"]
    assert first.node.bootTime.seconds == (MINUTE_NS - 86_400 * 10**9) // 10**9
    assert not any(message.HasField("node") for message in others)


def test_reads_and_writes_come_with_the_call_that_they_belong_to():
    batch = random_batch(connections=1, opens=0, closes=0, transfers=4, requests=2)
    at = MINUTE_NS + np.array([1, 2, 3, 9], "<u8") * np.uint64(10**6)
    transfers = replace(
        batch.transfers,
        end_ns=at,
        call=np.array([1, 6, 1, 6], "u1"),
        duration_ns=np.zeros(4, "<u8"),
        direction=np.array([1, 2, 1, 2], "u1"),
    )
    requests = replace(
        batch.requests,
        start_ns=at[[0, 2]] - np.uint64(1000),
        end_ns=at[[1, 2]] + np.uint64(0),
    )
    batch = without_internal(replace(batch, transfers=transfers, requests=requests))
    (stream,) = convert([batch], EVERYTHING, Limits(), 1.0).streams
    messages = parsed(stream)
    kinds = [
        (
            [log.WhichOneof("operation") for log in message.kernelLogs],
            message.HasField("protocolLog"),
        )
        for message in messages
    ]
    assert kinds == [(["write"], False), (["read", "write"], True), (["read"], True)]
    assert [message.HasField("connection") for message in messages] == [True, False, False]


def test_what_came_after_the_last_call_is_added_to_it():
    batch = without_internal(
        random_batch(connections=2, opens=0, closes=0, requests=0, transfers=5)
    )
    figures = np.full((5, 17), UNMEASURED_U32, "<u4")
    figures[:, 0] = [1, 2, 4, 8, 16]
    figures[1, 1] = 100
    transfers = replace(
        batch.transfers,
        connection=np.array([0, 0, 0, 1, 0], "<u4"),
        direction=np.array([1, 1, 2, 1, 2], "u1"),
        call=np.array([1, 14, 14, 14, 6], "u1"),
        end_ns=MINUTE_NS + np.arange(5).astype("<u8"),
        figures=figures,
    )
    converted = convert([replace(batch, transfers=transfers)], EVERYTHING, Limits(), 1.0)
    read, write = [log for _, log in told(converted.streams)]
    assert (read.read.l2Metrics.totalPackageCount, read.read.l2Metrics.totalPackageSize) == (3, 100)
    assert write.write.l4Metrics.totalDuration == 0  # index 0 of a write is its packet count
    assert write.write.l4Metrics.totalTransmitPackageCount == 20
    assert converted.dropped == {"no_call": 1, "added_to_call": 2}
    assert converted.events == 5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staged", [True, False])
def test_lost_packets_go_with_the_write_before_them_each_reason_once(seed, staged):
    shape = {"connections": 3, "transfers": 60, "drops": 40, "staged": staged}
    batch = without_rows_of_no_call(without_internal(random_batch(seed=seed, **shape)))
    converted = convert([batch], EVERYTHING, Limits(), 1.0)
    plain = Plain(batch, boot_ns(converted.streams[0]))
    wanted = Counter(log.SerializeToString(deterministic=True) for _, log in plain.transfers())
    found = Counter(
        log.SerializeToString(deterministic=True)
        for _, log in told(converted.streams)
        if isinstance(log, pb.AccessLogKernelLog) and log.WhichOneof("operation") in MOVES
    )
    assert found == wanted
    assert converted.dropped == {"added_to_call": 40}
    losses = [loss for data in found for loss in losses_of(data)]
    assert {loss.location for loss in losses} - {""} == {"NETFILTER_DROP", "QDISC_DROP", "77"}


def test_a_drop_is_of_the_call_that_ended_with_it_and_not_of_the_next():
    batch = without_internal(
        random_batch(connections=2, opens=0, closes=0, requests=0, transfers=4, drops=4)
    )
    at = MINUTE_NS + np.arange(4).astype("<u8")
    transfers = replace(
        batch.transfers,
        connection=np.array([0, 0, 0, 1], "<u4"),
        direction=np.array([2, 2, 1, 1], "u1"),
        call=np.array([6, 6, 1, 1], "u1"),
        end_ns=at,
        figures=np.full((4, FIGURE_WIDTH), UNMEASURED_U32, "<u4"),
    )
    drops = replace(
        batch.drops,
        connection=np.array([0, 0, 0, 1], "<u4"),
        end_ns=at[[0, 2, 1, 3]],
        reason=np.full(4, AT["QDISC_DROP"], "<u4"),
        packets=np.array([1, 2, 2**32 - 1, 8], "<u4"),
    )
    converted = convert([replace(batch, transfers=transfers, drops=drops)], EVERYTHING, *UNLIMITED)
    writes = [log.write for _, log in told(converted.streams) if log.HasField("write")]
    # More than the protocol has room for is the most that it has room for.
    assert [
        losses_of(pb.AccessLogKernelLog(write=each).SerializeToString()) for each in writes
    ] == [
        [pb.AccessLogLossPackageMetrics(location="QDISC_DROP", count=1)],
        [pb.AccessLogLossPackageMetrics(location="QDISC_DROP", count=2**31 - 1)],
    ]
    # A connection without a write in the period has none to go with.
    assert converted.dropped == {"added_to_call": 3, "no_call": 1}


def test_reasons_of_several_batches_keep_their_names():
    shape = {"connections": 3, "transfers": 60, "drops": 25}
    batch = without_internal(random_batch(seed=4, **shape))
    later = without_internal(
        random_batch(seed=5, sequence=1, first_id=50, connections=2, drops=3, transfers=0)
    )
    other = replace(later, names=["", *reversed(NAMES[1:])], parties=batch.parties.take([0, 1]))
    packets = Counter()
    for each in (batch, batch, other):
        known = each.transfers.rows > 0
        for reason, count in zip(
            each.drops.reason.tolist(), each.drops.packets.tolist(), strict=True
        ):
            packets[each.names[reason]] += count if known else 0
    converted = convert([batch, batch, other], EVERYTHING, *UNLIMITED)
    found = Counter()
    for _, log in told(converted.streams):
        if isinstance(log, pb.AccessLogKernelLog):
            for loss in log.write.l4Metrics.lossPackageMetrics:
                found[loss.location] += loss.count
    assert found.pop("") > 0
    assert found == +packets
    assert converted.dropped["no_call"] == 3
    assert converted.events == len(told(converted.streams)) + sum(converted.dropped.values())


def losses_of(data):
    return list(pb.AccessLogKernelLog.FromString(data).write.l4Metrics.lossPackageMetrics)


def test_a_container_that_got_its_name_late_is_one_connection_with_it():
    first = without_internal(random_batch(seed=3, connections=2, transfers=9))
    named = first.parties.local_container.copy()
    named[:] = AT["app"]
    second = replace(first, parties=replace(first.parties, local_container=named))
    nameless = replace(first, parties=replace(first.parties, local_container=np.zeros_like(named)))
    (stream,) = convert([nameless, second], EVERYTHING, *UNLIMITED).streams
    locals_ = [m.connection.local for m in parsed(stream) if m.HasField("connection")]
    assert [local.kubernetes.containerName for local in locals_] == ["app"] * 2


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_a_period_make_one_stream_with_each_connection_once(seed):
    batches = [without_internal(random_batch(seed=seed + n, sequence=n)) for n in range(3)]
    shared = batches[0]
    others = [replace(b, connections=shared.connections, parties=shared.parties) for b in batches]
    others[1] = replace(others[1], names=["", *NAMES[1:], "more"])
    converted = convert(others, EVERYTHING, Limits(), 3.0)
    (stream,) = converted.streams
    connections = [
        m.connection.SerializeToString() for m in parsed(stream) if m.HasField("connection")
    ]
    assert len(connections) <= shared.connections.rows
    one_by_one = [
        log for b in others for log in told(convert([b], EVERYTHING, Limits(), 1.0).streams)
    ]
    assert stream.logs + sum(converted.dropped.values()) == converted.events
    whole = Counter(type(log).__name__ for _, log in told(converted.streams))
    assert whole == Counter(type(log).__name__ for _, log in one_by_one)


@pytest.mark.parametrize(
    "limits",
    [Limits(message_bytes=200), Limits(stream_bytes=3000), Limits(stream_logs=7), Limits(1, 1, 1)],
)
def test_streams_and_messages_are_cut_without_losing_a_log(limits):
    batch = without_internal(random_batch(connections=5))
    whole = convert([batch], EVERYTHING, Limits(), 1.0)
    cut = convert([batch], EVERYTHING, limits, 1.0)
    assert counted(told(cut.streams)) == counted(told(whole.streams))
    longest = max(
        (len(message) for stream in cut.streams for message in stream.messages[1:]), default=0
    )
    assert longest <= max(limits.message_bytes, 200) + 500 + 400
    if limits.stream_logs == 7:
        assert len(cut.streams) > 10


CHOICES = [
    Choices(),
    Choices(sides="client"),
    Choices(sides="server"),
    Choices(same_service="unknown"),
    Choices(incomplete=True, exclude_namespaces=("data",)),
    Choices(logs_per_second=100),
    Choices(logs_per_second=1),
]


@pytest.mark.parametrize("choices", CHOICES)
def test_what_is_left_out_is_counted_by_reason(choices):
    batch = random_batch(seed=5, drops=9)
    converted = convert([batch], choices, Limits(), 1.0)
    logs = told(converted.streams)
    assert converted.events == batch.events == len(logs) + sum(converted.dropped.values())
    roles = {pb.AccessLogConnection.FromString(key).role for key, _ in logs}
    if choices.sides != "both":
        assert roles == {0 if choices.sides == "client" else 1}
        assert converted.dropped["side"] > 0
    assert converted.dropped["pod_internal"] > 0
    if choices.incomplete:
        assert converted.dropped["excluded_namespace"] > 0
    else:
        assert converted.dropped["incomplete"] > 0
    if choices.same_service == "unknown":
        unknown = [key for key, _ in logs if b"Unknown" in key]
        assert unknown
        assert "same_service" not in converted.dropped
    else:
        assert converted.dropped["same_service"] > 0


def test_a_sample_keeps_every_error():
    batch = without_internal(random_batch(seed=9, transfers=2000, requests=200))
    full = convert([batch], EVERYTHING, Limits(), 1.0)
    sampled = convert([batch], replace(EVERYTHING, logs_per_second=500), Limits(), 1.0)

    def errors(converted):
        return [
            log
            for _, log in told(converted.streams)
            if isinstance(log, pb.AccessLogProtocolLogs) and log.http.response.statusCode >= 500
        ]

    assert len(errors(full)) == len(errors(sampled)) > 10
    total = sum(stream.logs for stream in sampled.streams)
    assert 300 < total < 900
    assert sampled.dropped["sampled"] > 1000
    again = convert([batch], replace(EVERYTHING, logs_per_second=500), Limits(), 1.0)
    assert [s.messages for s in again.streams] == [s.messages for s in sampled.streams]


def test_endpoints_instead_of_paths():
    batch = without_internal(random_batch(transfers=0, requests=3))
    requests = replace(
        batch.requests,
        endpoint=np.array([AT["/orders/{id}"], UNMEASURED_U32, len(NAMES)], "<u4"),
        path=np.array([AT["/orders/17"], AT["/"], AT["/"]], "<u4"),
        method=np.array([AT["GET"]] * 3, "<u4"),
    )
    batch = replace(batch, requests=requests, names=[*NAMES, "GET:/x"])
    for paths, wanted in (
        ("path", ["/orders/17", "/", "/"]),
        ("endpoint", ["/orders/{id}", "/", "/x"]),
    ):
        converted = convert([batch], replace(EVERYTHING, paths=paths), Limits(), 1.0)
        found = [
            log.http.request.path
            for _, log in told(converted.streams)
            if isinstance(log, pb.AccessLogProtocolLogs)
        ]
        assert sorted(found) == sorted(wanted)


def test_unresolved_ends_as_services():
    batch = without_internal(random_batch())
    for unresolved, is_ip in (("address", True), ("name", False)):
        converted = convert([batch], replace(EVERYTHING, unresolved=unresolved), Limits(), 1.0)
        remotes = [
            pb.AccessLogConnection.FromString(key).remote for key, _ in told(converted.streams)
        ]
        assert any(remote.HasField("ip") for remote in remotes) == is_ip
        names = {remote.kubernetes.serviceName for remote in remotes}
        assert ("192.0.2.7" in names) != is_ip


def test_a_batch_without_events_makes_no_stream():
    batch = random_batch(opens=0, closes=0, transfers=0, requests=0, connections=0)
    assert convert([batch], EVERYTHING, Limits(), 1.0).streams == []


def test_a_clock_without_an_anchor_has_no_negative_offset():
    batch = without_internal(random_batch())
    header = replace(batch.header, anchor_unix_ns=0, anchor_monotonic_ns=0)
    batch = decode_batch(encode_batch(replace(batch, header=header)))
    converted = convert([batch], EVERYTHING, Limits(), 1.0)
    (stream,) = converted.streams
    base = boot_ns(stream)
    starts = [
        getattr(log, log.WhichOneof("operation")).startTime.offset.offset + base
        for _, log in told([stream])
        if isinstance(log, pb.AccessLogKernelLog)
    ]
    assert min(starts) >= base
    assert max(starts) < MINUTE_NS + 2 * 10**9


@settings(max_examples=60)
@given(period=st.lists(batches(), min_size=1, max_size=3), choices=st.sampled_from(CHOICES))
def test_whatever_can_be_read_can_be_told(period, choices):
    period = [decode_batch(encode_batch(each)) for each in period]
    period = [each for each in period if each.parties.rows or not each.events]
    assume(period)
    interfaces = [interface for each in period for interface in each.header.interfaces]
    converted = convert(period, choices, Limits(), 1.0, interfaces)
    assert converted.events == len(told(converted.streams)) + sum(converted.dropped.values())


@pytest.mark.parametrize(
    ("service", "namespace"),
    [
        ("web.shop", "shop"),
        ("east::web.shop", "shop"),
        ("a.b.shop", "shop"),
        ("10.0.0.1", ""),
        ("node-1", ""),
        ("fd00::1", ""),
    ],
)
def test_namespace_of_a_service(service, namespace):
    assert namespace_of(service) == namespace
