"""What an OAP makes of streams: its receiver's rules, then its metrics language.

`Analysis` follows the receiver message by message (state of a stream, addresses, what is valid) and
makes sources; `evaluate` runs rows of `tests.oap.oal_rows` over them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from schemas.pb import skywalking_accesslog_pb2 as pb

UNKNOWN = "Unknown"
PREFIX = {
    "S": "kubernetes_service_",
    "I": "kubernetes_service_instance_",
    "E": "kubernetes_service_endpoint_",
    "R": "kubernetes_service_relation_",
    "IR": "kubernetes_service_instance_relation_",
}
APDEX_T_MS = 500


@dataclass
class Source:
    """One thing that happened, as the metrics language sees it."""

    scope: str
    entity: tuple[str, ...]
    minute_s: int
    values: dict[str, object]


@dataclass
class Analysis:
    """The receiver.

    Attributes:
        former: Whether it is of 10.0: nanoseconds of HTTP calls, endpoints without a method.
        lookup: What it knows of addresses: (service, pod) by host.
        losses: What it is told and leaves out: lost packets by minute, role, service and location.
        containers: Likewise, of local ends: (pod, container).
    """

    former: bool = False
    lookup: dict[str, tuple[str, str]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    in_count: int = 0
    drop_count: int = 0
    same_service: int = 0
    components: set = field(default_factory=set)
    losses: Counter = field(default_factory=Counter)
    containers: set = field(default_factory=set)

    def stream(self, messages) -> None:
        """Take one stream."""
        node, connection = None, None
        for place, data in enumerate(messages):
            message = pb.EBPFAccessLogMessage.FromString(data)
            if place == 0 or message.HasField("node"):
                node = message.node
            if message.HasField("connection"):
                connection = self._connection(message.connection, node)
            logs = len(message.kernelLogs) + message.HasField("protocolLog")
            if connection is None:
                self.drop_count += logs
                continue
            self.in_count += logs
            for log in message.kernelLogs:
                self._kernel(connection, node, log)
            if message.HasField("protocolLog"):
                self._protocol(connection, node, message.protocolLog.http)

    def _connection(self, sent, node):
        local, remote = self._address(sent.local), self._address(sent.remote)
        if local is None or remote is None:
            return None
        if local[0] == remote[0]:
            self.same_service += 1
            return None
        server = sent.role == 1
        source, dest = (remote, local) if server else (local, remote)
        self.components.add((sent.protocol, sent.tlsMode))
        self.containers.add((local[1], sent.local.kubernetes.containerName))
        point = {0: "CLIENT", 1: "SERVER", 2: "PROXY"}[sent.role]
        return local, source, dest, point

    def _address(self, sent):
        kind = sent.WhichOneof("address")
        if kind is None:
            return None
        if kind == "ip":
            return self.lookup.get(sent.ip.host, (UNKNOWN, UNKNOWN))
        return sent.kubernetes.serviceName[:70], sent.kubernetes.podName[:70]

    def _kernel(self, connection, node, log):
        kind = log.WhichOneof("operation")
        operation = getattr(log, kind)
        minute = _minute(node, operation.startTime)
        values = {"type": kind, f"{kind}.duration": _length(operation)}
        if kind in ("connect", "close"):
            values[f"{kind}.success"] = operation.success
        elif kind == "read":
            two, three = operation.l2Metrics, operation.l3Metrics
            values |= {
                "read.l4.duration": operation.l4Metrics.totalDuration,
                "read.l3.duration": three.totalDuration,
                "read.l3.rcvDuration": three.totalRecvDuration,
                "read.l3.localDuration": three.totalLocalDuration,
                "read.l3.netFilterCount": three.totalNetFilterCount,
                "read.l3.netFilterDuration": _if_any(
                    three.totalNetFilterCount, three.totalNetFilterDuration
                ),
                "read.l2.packageCount": two.totalPackageCount,
                "read.l2.totalPackageSize": two.totalPackageSize,
                "read.l2.packageToQueueDuration": two.totalPackageToQueueDuration,
                "read.l2.rcvPackageFromQueueDuration": two.totalRcvPackageFromQueueDuration,
            }
        elif kind == "write":
            two, three, four = operation.l2Metrics, operation.l3Metrics, operation.l4Metrics
            values |= {
                "write.l4.duration": four.totalDuration,
                "write.l4.transmitPackageCount": four.totalTransmitPackageCount,
                "write.l4.retransmitPackageCount": four.totalRetransmitPackageCount,
                "write.l4.totalPackageSize": four.totalPackageSize,
                "write.l3.duration": three.totalDuration,
                "write.l3.localDuration": three.totalLocalDuration,
                "write.l3.outputDuration": three.totalOutputDuration,
                "write.l3.resolveMACCount": three.totalResolveMACCount,
                "write.l3.resolveMACDuration": _if_any(
                    three.totalResolveMACCount, three.totalResolveMACDuration
                ),
                "write.l3.netFilterCount": three.totalNetFilterCount,
                "write.l3.netFilterDuration": _if_any(
                    three.totalNetFilterCount, three.totalNetFilterDuration
                ),
                "write.l2.duration": two.totalDuration,
                "write.l2.enterQueueBufferCount": two.totalEnterQueueBufferCount,
                "write.l2.readySendDuration": two.totalReadySendDuration,
                "write.l2.networkDeviceSendDuration": two.totalNetDeviceSendDuration,
            }
            (service, _), _, _, point = connection
            for loss in four.lossPackageMetrics:
                self.losses[minute, point.lower(), service, loss.location] += loss.count
        self._add(connection, minute, values)

    def _protocol(self, connection, node, http):
        length = _length(http)
        success = http.response.statusCode < 500
        call = {
            "latency": length if self.former else length // 1_000_000,
            "statusCode": http.response.statusCode,
            "sizeOfRequestHeader": http.request.sizeOfHeadersBytes,
            "sizeOfRequestBody": http.request.sizeOfBodyBytes,
            "sizeOfResponseHeader": http.response.sizeOfHeadersBytes,
            "sizeOfResponseBody": http.response.sizeOfBodyBytes,
        }
        minute = _minute(node, http.startTime)
        values = {"type": "protocol", "protocol.type": "http", "protocol.success": success}
        values |= {f"protocol.http.{name}": value for name, value in call.items()}
        self._add(connection, minute, values)
        local, _, _, point = connection
        if point != "CLIENT":
            method = pb.AccessLogHTTPProtocolRequestMethod.Name(http.request.method).upper()
            name = http.request.path if self.former else f"{method}:{http.request.path}"
            values = {"type": "http", "success": success, "duration": call["latency"]}
            values |= {f"http.{name_}": value for name_, value in call.items()}
            self.sources.append(Source("E", (local[0], name[:150]), minute, values))

    def _add(self, connection, minute, values):
        local, source, dest, point = connection
        values = values | {"detectPoint": point}
        if local[0] != UNKNOWN:
            self.sources.append(Source("S", (local[0],), minute, values))
            if local[1] and local[1] != UNKNOWN:
                self.sources.append(Source("I", local, minute, values))
        self.sources.append(Source("R", (source[0], dest[0]), minute, values))
        if source[1] and dest[1]:
            self.sources.append(Source("IR", (*source, *dest), minute, values))


def _length(operation):
    return operation.endTime.offset.offset - operation.startTime.offset.offset


def _if_any(count, duration):
    return duration if count > 0 else 0


def _minute(node, stamp):
    # Both truncated to seconds before they are added; the rest of the boot time is left out.
    seconds = node.bootTime.seconds + stamp.offset.offset // 1_000_000_000
    return seconds // 60 * 60


_CONDITION = re.compile(r"([\w.]+) *(==|>=|<) *(\w+)")
_TESTS = {
    "==": lambda a, b: a == b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
}


def _conditions(text):
    found = []
    for name, test, value in _CONDITION.findall(text):
        wanted = {"true": True, "false": False}.get(value, value)
        if isinstance(wanted, str) and wanted.isdigit():
            wanted = int(wanted)
        found.append((name, _TESTS[test], wanted))
    return found


def names_of(text):
    """Names of the metrics that some rows make."""
    rows = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return [PREFIX[scope] + row[0] for row in rows for scope in row[1].split(",")]


def evaluate(text, sources):
    """Return name -> (minute, entity) -> value."""
    by_scope = defaultdict(list)
    for source in sources:
        by_scope[source.scope].append(source)
    found = {}
    for line in text.strip().splitlines():
        suffix, scopes, taken, filters, function = (part.strip() for part in line.split(" | "))
        conditions = _conditions(filters)
        for scope in scopes.split(","):
            groups = defaultdict(list)
            for source in by_scope[scope]:
                values = source.values
                if all(
                    name in values and test(values[name], wanted)
                    for name, test, wanted in conditions
                ):
                    groups[source.minute_s, source.entity].append(values)
            found[PREFIX[scope] + suffix] = {
                key: _value(function, taken, rows) for key, rows in groups.items()
            }
    return found


def _value(function, taken, rows):
    if function == "cpm()":
        return len(rows)
    if function.startswith("percent("):
        ((name, test, wanted),) = _conditions(function)
        return sum(test(row[name], wanted) for row in rows) * 10000 // len(rows)
    values = [row[taken] for row in rows]
    if function == "sum()":
        return sum(values)
    if function == "longAvg()":
        return sum(values) // len(values)
    if function.startswith("apdex("):
        status = "protocol.success" if "protocol.success" in rows[0] else "success"
        good = [row[taken] for row in rows if row[status]]
        satisfied = sum(value <= APDEX_T_MS for value in good)
        tolerated = sum(APDEX_T_MS < value <= 4 * APDEX_T_MS for value in good)
        return (satisfied * 10000 + tolerated * 10000 // 2) // len(rows)
    assert function == "percentile2(10)", function
    buckets = sorted(value // 10 for value in values)
    found = []
    for rank in (50, 75, 90, 95, 99):
        roof = round(len(buckets) * rank / 100)
        found.append(buckets[max(roof, 1) - 1] * 10)
    return found
