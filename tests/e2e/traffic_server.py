"""A TCP server that counts what it does: ``traffic_server.py HOST PORT [HOST PORT ...]``.

Protocol: a request is an 8-byte header (size of the request's body, size of the wanted response)
and the body; the response is that many bytes. On SIGTERM it prints one JSON object with its own
counts, and those of its sockets, and exits. Standard library only: it runs inside the test pods.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys

HEADER = struct.Struct("!II")
CHUNK = b"x" * 65536


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.header = b""
        self.to_read = 0
        self.to_write = 0
        self.wanted = 0


def main() -> None:
    counts = dict.fromkeys(
        (
            "accepted", "closed", "bytes_read", "bytes_written", "reads", "writes",
            "segments_out", "segments_in", "segment_bytes", "retransmits",
        ),
        0,
    )  # fmt: skip
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    connections: dict[int, Connection] = {}
    for host, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poll.register(listener.fileno(), select.EPOLLIN)
    stop = False

    def on_signal(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_signal)
    print("ready", flush=True)

    def close(fd: int) -> None:
        connection = connections.pop(fd)
        poll.unregister(fd)
        # The client's FIN acknowledged everything: these are final.
        info = connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        counts["segments_in"] += struct.unpack_from("I", info, 152)[0]
        counts["segments_out"] += struct.unpack_from("I", info, 156)[0]
        counts["segment_bytes"] += struct.unpack_from("Q", info, 200)[0]  # those sent again as well
        counts["retransmits"] += struct.unpack_from("I", info, 100)[0]
        connection.sock.close()
        counts["closed"] += 1

    def readable(fd: int) -> None:
        connection = connections[fd]
        size = HEADER.size - len(connection.header) if not connection.to_read else 65536
        try:
            data = connection.sock.recv(min(size, connection.to_read or size))
        except BlockingIOError:
            return
        except ConnectionError:
            close(fd)
            return
        if not data:
            close(fd)
            return
        counts["reads"] += 1
        counts["bytes_read"] += len(data)
        if connection.to_read:
            connection.to_read -= len(data)
        else:
            connection.header += data
            if len(connection.header) < HEADER.size:
                return
            connection.to_read, connection.wanted = HEADER.unpack(connection.header)
            connection.header = b""
        if not connection.to_read and connection.wanted:
            connection.to_write, connection.wanted = connection.wanted, 0
            poll.modify(fd, select.EPOLLOUT)

    def writable(fd: int) -> None:
        connection = connections[fd]
        try:
            sent = connection.sock.send(CHUNK[: min(len(CHUNK), connection.to_write)])
        except BlockingIOError:
            return
        except ConnectionError:
            close(fd)
            return
        counts["writes"] += 1
        counts["bytes_written"] += sent
        connection.to_write -= sent
        if not connection.to_write:
            poll.modify(fd, select.EPOLLIN)

    while not stop or connections:
        for fd, _ in poll.poll(0.2):
            if fd in listeners:
                while True:
                    try:
                        sock, _address = listeners[fd].accept()
                    except BlockingIOError:
                        break
                    sock.setblocking(False)
                    counts["accepted"] += 1
                    connections[sock.fileno()] = Connection(sock)
                    poll.register(sock.fileno(), select.EPOLLIN)
            elif connections[fd].to_write:
                writable(fd)
            else:
                readable(fd)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
