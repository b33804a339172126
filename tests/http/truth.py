"""What servers logged, as the rows that must come of it, and the comparison of both.

What nginx 1.22 says (measured here by counting bytes beside it, see ``test_truth.py``):

``$request_length``
    HTTP/1: the head with its empty line, and the body as it was framed: chunk sizes, extensions and
    trailers are in it. HTTP/2: the field blocks and the content, without frame headers, padding and
    priority. So ``request_header_size + request_body_size`` equals it, but for chunked framing.
    A body that nginx throws away, because no backend is to have it, is not in it.
``$bytes_sent``
    HTTP/1: everything written, interim responses and chunk framing included. HTTP/2: everything
    written of the stream's HEADERS and DATA frames with 9 bytes of header for each frame.
``$body_bytes_sent``
    HTTP/1: ``$bytes_sent`` less the head of the final response: content, chunk framing, and the 25
    bytes of an interim response, though it is no body. HTTP/2: content only.
``$status``
    What nginx would say or said: 499, 408 and often 400 are logged without a byte sent, which
    ``$bytes_sent`` tells. A cut response keeps its status, and ``$request_completion`` is empty.
``$connection_requests``, ``$remote_port``
    Number of the request on its connection, and which connection that is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from collector.protocols.calls import NO_STATUS, NOT_GRPC, UNMEASURED, Outcome, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Expected",
    "Row",
    "check",
    "compare",
    "compare_lossy",
    "from_grpc",
    "from_nginx",
    "from_node",
    "from_node_http2",
]

Row = dict[str, Any]
Allowed = int | str | range | frozenset[int]

INTERIM: Final = len(b"HTTP/1.1 100 Continue\r\n\r\n")
_FRAME: Final = 9
_LONGEST: Final = 1 << 40
_ANY: Final = range(_LONGEST)
_VERSIONS: Final = {
    "HTTP/1.0": Version.HTTP_1_0,
    "HTTP/1.1": Version.HTTP_1_1,
    "HTTP/2.0": Version.HTTP_2,
}
_BODILESS: Final = (204, 304)
_SHOWN: Final = 12
_SUMS: Final = {"request_size": "request", "response_size": "response"}
"""Of header and body."""
_COMPARED: Final = (
    *("method", "path", "version", "status", "grpc_status", "outcome"),
    *("request_header_size", "request_body_size", "response_header_size", "response_body_size"),
)


@dataclass(slots=True)
class Expected:
    """The row that a line of a log demands.

    Attributes:
        port: Of the client.
        fields: By column: the value, or all that are allowed; columns left out are not compared.
        line: The log's, for the reader of a failure.
        framed: Bytes of the response's frames less its content, where that is known: its field
            blocks and nine for each frame.
        is_optional: A row may be missing, because the request's head never ended.
    """

    port: int
    fields: dict[str, Allowed]
    line: dict[str, Any]
    framed: int | None = None
    is_optional: bool = False

    def differs(self, row: Row, is_partial: bool = False) -> list[str]:
        """Columns in which a row is not what it must be.

        Args:
            row: Of the collector.
            is_partial: What the row says it does not know may be anything.
        """
        found = [
            f"{name}: {_value(row, name)}, not {_text(allowed)}"
            for name, allowed in self.fields.items()
            if not (is_partial and _is_unknown(row, name)) and not _fits(_value(row, name), allowed)
        ]
        if is_partial and row["response_header_size"] is None:
            return found
        if self.framed is not None and not self._is_framed(row["response_header_size"]):
            found.append("sum of its sizes")
        return found

    def _is_framed(self, header: int | None) -> bool:
        # One HEADERS frame at least, and for each DATA frame nine bytes more.
        assert self.framed is not None
        frames = self.framed - (header or 0)
        return header is not None and frames >= _FRAME and frames % _FRAME == 0


def _value(row: Row, name: str) -> Any:
    if name in _SUMS:
        header, body = row[f"{_SUMS[name]}_header_size"], row[f"{_SUMS[name]}_body_size"]
        return None if header is None or body is None else header + body
    return row[name]


def _is_unknown(row: Row, name: str) -> bool:
    # Of a call whose response was in a gap only that it came to its end.
    if name == "outcome":
        return row["outcome"] == Outcome.ANSWERED and row["response_body_size"] is None
    if name == "status":
        return row["outcome"] != Outcome.UNANSWERED and row["status"] == NO_STATUS
    if name == "grpc_status":
        return row["grpc_status"] == UNMEASURED
    return _value(row, name) in (None, "")


def _fits(value: Any, allowed: Allowed) -> bool:
    if value is None:
        return False  # a range would be searched from end to end for it
    if isinstance(allowed, (range, frozenset)):
        return value in allowed
    return bool(value == allowed)


def _text(allowed: Allowed) -> str:
    if isinstance(allowed, range):
        return f"{allowed.start} to {allowed.stop - 1}"
    if isinstance(allowed, frozenset):
        return " or ".join(map(str, sorted(allowed)))
    return repr(allowed)


def path_of(target: str) -> str:
    """The path of a request target: no query, no fragment, nothing before it."""
    if "://" in target.split("?")[0]:
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    return target.split("?")[0].split("#")[0]


def content_size(uri: str) -> int | None:
    """Bytes of content that ``node/server.js`` makes for a path, as far as the path says it."""
    parts = path_of(uri).split("/")[1:]
    if parts and parts[0] in ("chunked", "trailers", "unframed"):
        return int(parts[1]) * int(parts[2])
    if parts and parts[0] == "drip":
        return int(parts[1]) * 64
    return None


def from_nginx(lines: Iterable[dict[str, str]], port: int, role: str = "server") -> list[Expected]:
    """Rows that nginx's log demands of the connections to one of its ports.

    Args:
        lines: Of the log.
        port: It listens there.
        role: Whose rows: a client's response may have been cut before all of it came.
    """
    return [_nginx(line, role) for line in lines if int(line["server_port"]) == port]


def _nginx(line: dict[str, str], role: str) -> Expected:
    version = _VERSIONS.get(line["protocol"], Version.HTTP_1_1)
    sent, body_sent = int(line["bytes_sent"]), int(line["body_bytes_sent"])
    status, length = int(line["status"]), int(line["request_length"])
    is_complete = line["completion"] == "OK" and sent > 0
    # What nginx was told to say and did not: the status of such a line is its own word for it.
    is_silent = sent == 0 or (sent == INTERIM and line["expect"] != "")
    fields: dict[str, Allowed] = {
        "method": line["method"],
        "path": path_of(line["uri"]),
        "version": int(version),
        "grpc_status": NOT_GRPC,
        "status": NO_STATUS if is_silent else status,
        "outcome": int(
            Outcome.UNANSWERED
            if is_silent
            else Outcome.ANSWERED
            if is_complete
            else Outcome.ABORTED
        ),
    }
    given = line["content_length"]
    is_read = status not in (400, 408, 413, 499) and (is_complete or not given)
    fields |= _nginx_request(line, length, version, is_read=is_read)
    if line["uri"].startswith("/reset"):  # its backend leaves, which nginx takes for an end
        is_complete = False
        fields["outcome"] = int(Outcome.ABORTED)
    framed: int | None = None
    if is_complete:
        if version == Version.HTTP_2:
            size = _nginx_content(line, status, body_sent)
            fields["response_body_size"] = size
            framed = sent - size
        else:
            fields |= _nginx_response(line, status, sent, body_sent)
    elif is_silent:
        fields |= {"response_body_size": 0, "response_header_size": frozenset({0, sent})}
    else:
        most = max(body_sent, 0)
        fields["response_body_size"] = range(most + 1)
        if version != Version.HTTP_2 and not line["response_coding"] and role == "server":
            fields["response_size"] = sent
    if role == "client":
        # The client may have left before it read what nginx had sent.
        if not is_complete and not is_silent:
            del fields["status"]
            fields["outcome"] = frozenset({int(Outcome.ABORTED), int(Outcome.UNANSWERED)})
            fields.pop("response_size", None)
        elif is_complete and _is_left(line["uri"]):
            fields |= _cut(body_sent)
    is_headless = not line["method"] or (status == 400 and is_silent and not given)
    return Expected(int(line["port"]), fields, line, framed, is_optional=is_headless)


def _is_left(uri: str) -> bool:
    # By the client, before it had the whole response: what the server wrote may not have come.
    return "left-" in uri


def _cut(most: int) -> dict[str, Allowed]:
    either = frozenset({int(Outcome.ANSWERED), int(Outcome.ABORTED)})
    return {"outcome": either, "response_body_size": range(most + 1)}


def _nginx_request(
    line: dict[str, str], length: int, version: int, *, is_read: bool
) -> dict[str, Allowed]:
    if not is_read:
        return {}
    if line["content_length"] and not line["upstream_length"]:
        # What no backend is to have is thrown away as it comes, and not counted.
        fields: dict[str, Allowed] = {"request_body_size": range(int(line["content_length"]) + 1)}
        return fields if version == Version.HTTP_2 else fields | {"request_header_size": length}
    if line["content_length"]:
        body = int(line["content_length"])
    elif line["received"]:
        body = int(line["received"])
    elif line["coding"]:
        return {"request_header_size": range(1, length + 1)}
    elif version == Version.HTTP_2 and line["method"] not in ("GET", "HEAD"):
        return {"request_size": length}
    else:
        body = 0
    if line["coding"]:
        return {"request_body_size": body, "request_header_size": range(1, length - body)}
    return {"request_body_size": body, "request_header_size": length - body}


def _nginx_content(line: dict[str, str], status: int, body_sent: int) -> int:
    if line["method"] == "HEAD" or status in _BODILESS:
        return 0
    return int(line["response_length"]) if line["response_length"] else body_sent


def _nginx_response(
    line: dict[str, str], status: int, sent: int, body_sent: int
) -> dict[str, Allowed]:
    if line["method"] == "HEAD" or status in _BODILESS:
        return {"response_body_size": 0, "response_header_size": sent}
    if line["response_length"]:
        size = int(line["response_length"])
        return {"response_body_size": size, "response_header_size": sent - size}
    interim = frozenset({0, INTERIM}) if line["expect"] else frozenset({0})
    heads = frozenset(sent - body_sent + each for each in interim)
    if line["response_coding"] == "chunked":
        made = content_size(line["uri"])
        if made is None and line["received"]:
            made = int(line["received"])
        size_allowed: Allowed = range(body_sent) if made is None else made
        return {"response_body_size": size_allowed, "response_header_size": heads}
    return {"response_body_size": body_sent, "response_header_size": heads}


def from_node(lines: Iterable[dict[str, Any]]) -> list[Expected]:
    """Rows that the log of a `NodeServer` of kind http demands."""
    found = []
    for line in lines:
        is_complete, status = line["completed"], line["status"]
        fields: dict[str, Allowed] = {
            "method": line["method"],
            "path": line["uri"] if line["method"] == "CONNECT" else path_of(line["uri"]),
            "version": int(_VERSIONS[line["protocol"]]),
            "status": status,
            "grpc_status": NOT_GRPC,
            "request_body_size": line["received"] if is_complete else _ANY,
            "response_body_size": line["sent"] if is_complete else range(line["sent"] + 1),
            "outcome": int(_outcome(is_complete, status)),
        }
        if is_complete and not path_of(line["uri"]).startswith("/hint"):
            trailers = 0
            if path_of(line["uri"]).startswith("/trailers") and line["protocol"] != "HTTP/1.0":
                # With the empty line behind it, as of a head; one that is empty counts nothing.
                trailers = len(f"x-sum: {line['sent']}\r\n\r\n")
            header = line["header"] + line.get("interim", 0) + trailers
            fields["response_header_size"] = header
        if is_complete and _is_left(line["uri"]):
            fields |= _cut(line["sent"])
        found.append(Expected(line["port"], fields, line))
    return found


def from_node_http2(lines: Iterable[dict[str, Any]]) -> list[Expected]:
    """Rows that the log of a `NodeServer` of kind http2 demands."""
    found = []
    for line in lines:
        is_complete, status = line["completed"], line["status"]
        fields: dict[str, Allowed] = {
            "method": line["method"],
            "path": path_of(line["uri"]),
            "version": int(Version.HTTP_2),
            "status": status,
            "grpc_status": NOT_GRPC,
            "request_body_size": line["received"] if is_complete else _ANY,
            "response_body_size": line["sent"] if is_complete else range(line["sent"] + 1),
            "outcome": int(_outcome(is_complete, status)),
        }
        found.append(Expected(line["port"], fields, line))
    return found


def _outcome(is_complete: bool, status: int) -> Outcome:
    if is_complete:
        return Outcome.ANSWERED
    return Outcome.ABORTED if status else Outcome.UNANSWERED


def from_grpc(lines: Iterable[dict[str, Any]]) -> list[Expected]:
    """Rows that the log of a gRPC server demands. Who cancels may still be answered, or not."""
    found = []
    for line in lines:
        fields: dict[str, Allowed] = {
            "method": "POST",
            "path": line["uri"],
            "version": int(Version.HTTP_2),
        }
        if line["cancelled"]:
            fields |= {
                "status": frozenset({NO_STATUS, 200}),
                "grpc_status": frozenset({-1, 0, 1, 4}),
                "response_body_size": range(line["sent"] + 1),
            }
        else:
            code, received = line["grpc_status"], line["received"]
            fields |= {
                "status": 200,
                "grpc_status": code,
                "outcome": int(Outcome.ANSWERED),
                "request_body_size": range(received, _LONGEST) if code else received,
                "response_body_size": line["sent"],
            }
        found.append(Expected(line["port"], fields, line))
    return found


def _of_end(rows: Iterable[Row], role: str, port: int) -> list[Row]:
    server_port = "local_port" if role == "server" else "remote_port"
    return [row for row in rows if row["role"] == role and row[server_port] == port]


def compare(
    rows: Iterable[Row],
    expected: Sequence[Expected],
    role: str,
    port: int,
) -> list[str]:
    """Match rows and expectations one to one; what does not match, readable.

    Args:
        rows: Of the collector, of any connections.
        expected: Of the log of the one server.
        role: ``client`` or ``server``: whose rows are looked at.
        port: Where the server listens.
    """
    client_port = "remote_port" if role == "server" else "local_port"
    buckets: dict[tuple[int, Any, Any], tuple[list[Row], list[Expected]]] = defaultdict(
        lambda: ([], [])
    )
    for row in _of_end(rows, role, port):
        buckets[row[client_port], row["method"], row["path"]][0].append(row)
    for one in expected:
        buckets[one.port, one.fields["method"], one.fields["path"]][1].append(one)
    problems: list[str] = []
    for key, bucket in buckets.items():
        left, missing = _match(*bucket)
        # Near misses are shown beside each other.
        pairs = min(len(missing), len(left))
        for one, row in zip(missing[:pairs], left[:pairs], strict=True):
            differences = ", ".join(one.differs(row))
            problems.append(f"{key}: {differences}\n    {json.dumps(one.line)}")
        problems += [
            f"{key}: no row\n    {json.dumps(one.line)}"
            for one in missing[pairs:]
            if not one.is_optional
        ]
        left = left[pairs:]
        problems += [f"{key}: row without a line\n    {_brief(row)}" for row in left]
    return problems


def compare_lossy(
    rows: Iterable[Row],
    expected: Sequence[Expected],
    role: str,
    port: int,
) -> tuple[list[str], list[Expected]]:
    """Match rows and expectations where bytes are known to be missing.

    A row may say that it does not know, but nothing that is wrong, and nothing twice.

    Returns:
        What is wrong, readable, and the lines without a row. Arguments are those of `compare`.
    """
    client_port = "remote_port" if role == "server" else "local_port"
    by_port: dict[int, tuple[list[Row], list[Expected]]] = defaultdict(lambda: ([], []))
    for row in _of_end(rows, role, port):
        by_port[row[client_port]][0].append(row)
    for one in expected:
        by_port[one.port][1].append(one)
    results = [_match_partial(*_match_certain(*bucket)) for bucket in by_port.values()]
    left = [row for rows_left, _ in results for row in rows_left]
    lines = {(one.port, one.fields["path"]): one for _, missing in results for one in missing}
    problems = []
    for row in left:
        text = f"row without a line\n    {_brief(row)}"
        one = lines.get((row[client_port], row["path"]))
        if one is not None:
            differences = ", ".join(one.differs(row, is_partial=True))
            text += f"\n    {differences}\n    {json.dumps(one.line)}"
        problems.append(text)
    return problems, [one for _, missing in results for one in missing if not one.is_optional]


def _match_certain(there: list[Row], wanted: list[Expected]) -> tuple[list[Row], list[Expected]]:
    # Only of lines that leave no choice, so that none of them takes the row of another.
    left, missing = _match(there, [one for one in wanted if _exactness(one) == len(one.fields)])
    return left, missing + [one for one in wanted if _exactness(one) < len(one.fields)]


def _match_partial(there: list[Row], wanted: list[Expected]) -> tuple[list[Row], list[Expected]]:
    # As many as can be matched at all, by augmenting paths: what is not known fits many lines.
    fits = [
        [at for at, one in enumerate(wanted) if not one.differs(row, is_partial=True)]
        for row in there
    ]
    row_of: dict[int, int] = {}
    for start in range(len(there)):
        came: dict[int, int] = {}  # by line: the row from which it was reached
        front = [start]
        while front:
            row = front.pop()
            fresh = [at for at in fits[row] if at not in came]
            came |= dict.fromkeys(fresh, row)
            free = next((at for at in fresh if at not in row_of), None)
            if free is None:
                front += [row_of[at] for at in fresh]
                continue
            while True:
                row = came[free]
                before = next((at for at, other in row_of.items() if other == row), None)
                row_of[free] = row
                if before is None:
                    break
                del row_of[before]
                free = before
            break
    used = set(row_of.values())
    left = [row for number, row in enumerate(there) if number not in used]
    return left, [one for at, one in enumerate(wanted) if at not in row_of]


def _match(there: list[Row], wanted: list[Expected]) -> tuple[list[Row], list[Expected]]:
    # Rows that are the same, and lines that demand the same, are matched at once: of a hundred
    # thousand there are only so many kinds.
    offers: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    demands: dict[tuple[Any, ...], list[Expected]] = defaultdict(list)
    for row in there:
        offers[tuple(row[name] for name in _COMPARED)].append(row)
    for one in wanted:
        demands[tuple(one.fields.items()), one.framed].append(one)
    # Lines that leave a choice come last.
    for lines in sorted(demands.values(), key=lambda lines: -_exactness(lines[0])):
        for rows in offers.values():
            if rows and lines and not lines[0].differs(rows[0]):
                count = min(len(rows), len(lines))
                del rows[:count], lines[:count]
    left = [row for rows in offers.values() for row in rows]
    missing = [one for lines in demands.values() for one in lines]
    return sorted(left, key=lambda row: row["start_ns"]), missing


def _exactness(one: Expected) -> int:
    return sum(not isinstance(allowed, (range, frozenset)) for allowed in one.fields.values())


def _brief(row: Row) -> str:
    names = ("method", "path", "version", "status", "outcome", "grpc_status", "start_ns", "end_ns")
    sizes = [name for name in row if name.endswith("_size")]
    return json.dumps({name: row[name] for name in (*names, *sizes)})


def check(
    rows: Iterable[Row],
    expected: Sequence[Expected],
    role: str,
    port: int,
) -> None:
    """Fail unless `compare` finds nothing; says how much it found and shows the first.

    Raises:
        AssertionError: If anything differs.
    """
    rows = list(rows)
    problems = compare(rows, expected, role, port)
    if problems:
        of_end = len(_of_end(rows, role, port))
        shown = "\n".join(problems[:_SHOWN])
        raise AssertionError(
            f"{len(problems)} of {len(expected)} lines and {of_end} {role} rows differ:\n{shown}"
        )
