"""A TCP client that counts what it does: ``traffic_client.py [PLAN]``, a JSON file or stdin.

The plan is a list of steps, run in order:
  {"kind": "short",   "host", "port", "connections", "request", "response"}  one request each
  {"kind": "keep",    "host", "port", "connections", "requests", "request", "response"}
  {"kind": "bulk",    "host", "port", "connections", "request", "response"}
  {"kind": "nonblocking", ...as short, with connect_ex and a poll}
  {"kind": "refused" | "timeout" | "abandoned", "host", "port", "connections"}
It prints one JSON object: per "host:port" what this end counted, and what its sockets counted
until just before they were closed. Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import time

HEADER = struct.Struct("!II")
COUNTS = (
    "connects", "successes", "closed", "bytes_written", "bytes_read", "writes", "reads",
    "segments_out", "segments_in", "segment_bytes", "retransmits",
)  # fmt: skip


def family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def exchange(sock: socket.socket, counts: dict[str, int], request: int, response: int) -> None:
    data = memoryview(HEADER.pack(request, response) + b"q" * request)
    while data:
        sent = sock.send(data[: 256 * 1024])
        counts["writes"] += 1
        counts["bytes_written"] += sent
        data = data[sent:]
    left = response
    while left:
        got = len(sock.recv(min(left, 256 * 1024)))
        if not got:
            raise RuntimeError("server closed early")
        counts["reads"] += 1
        counts["bytes_read"] += got
        left -= got


def add_packets(sock: socket.socket, counts: dict[str, int]) -> None:
    """Add what the socket itself counted (``struct tcp_info``)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    counts["segments_in"] += struct.unpack_from("I", info, 152)[0]
    counts["segments_out"] += struct.unpack_from("I", info, 156)[0]
    counts["segment_bytes"] += struct.unpack_from("Q", info, 200)[0]  # those sent again as well
    counts["retransmits"] += struct.unpack_from("I", info, 100)[0]


def connect(step: dict[str, object], counts: dict[str, int]) -> socket.socket:
    host, port = str(step["host"]), int(str(step["port"]))
    sock = socket.socket(family(host))
    counts["connects"] += 1
    if step["kind"] == "nonblocking":
        sock.setblocking(False)
        code = sock.connect_ex((host, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll()
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.setblocking(True)
    else:
        sock.connect((host, port))
    counts["successes"] += 1
    return sock


def fail(step: dict[str, object], counts: dict[str, int]) -> None:
    host, port = str(step["host"]), int(str(step["port"]))
    expected = {
        "refused": (errno.ECONNREFUSED,),
        "timeout": (errno.ETIMEDOUT,),
        "abandoned": (errno.EINPROGRESS,),
    }
    with socket.socket(family(host)) as sock:
        counts["connects"] += 1
        if step["kind"] == "abandoned":
            sock.setblocking(False)
        code = sock.connect_ex((host, port))
        if step["kind"] == "abandoned":
            time.sleep(0.05)
        if code not in expected[str(step["kind"])]:
            raise RuntimeError(f"{step['kind']}: got {errno.errorcode.get(code, code)}")


def main() -> None:
    source = open(sys.argv[1]) if len(sys.argv) > 1 else sys.stdin  # noqa: SIM115
    plan = json.load(source)
    totals: dict[str, dict[str, int]] = {}
    for step in plan:
        counts = totals.setdefault(f"{step['host']}|{step['port']}", dict.fromkeys(COUNTS, 0))
        for _ in range(step["connections"]):
            if step["kind"] in ("refused", "timeout", "abandoned"):
                fail(step, counts)
                continue
            sock = connect(step, counts)
            for _ in range(step.get("requests", 1)):
                exchange(sock, counts, step["request"], step["response"])
            # The answer was the last that came, and it acknowledged the request: these are final.
            add_packets(sock, counts)
            sock.close()
            counts["closed"] += 1
    print(json.dumps(totals), flush=True)


if __name__ == "__main__":
    main()
