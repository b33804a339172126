"""Clients that write HTTP/1 on a socket as no library would; see `tests.http.clients`."""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import time
from typing import TYPE_CHECKING, Final

from tests.http.clients import Address, Sent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "Reader"]


def _connect(address: Address) -> socket.socket:
    made = socket.create_connection(address, timeout=15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Reader:
    """Reads responses off a socket, knowing no more of HTTP than these tests need."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._held = b""

    def _more(self) -> None:
        data = self._client.recv(262_144)
        if not data:
            raise ConnectionError("closed by the server")
        self._held += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._held:
            self._more()
        head, _, self._held = self._held.partition(mark)
        return head

    def _exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            size -= len(self._held)
            self._held = b""
            self._more()
        data, self._held = self._held[:size], self._held[size:]
        return data

    def response(self, method: str = "GET") -> int:
        """Read one whole final response; its status."""
        while True:
            head = self._until(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status >= 200 or status == 101:
                break
        if method == "HEAD" or status in (101, 204, 304):
            return status
        fields = dict(
            line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
        )
        if b"content-length" in fields:
            self._exactly(int(fields[b"content-length"]))
        elif b"chunked" in fields.get(b"transfer-encoding", b""):
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                self._exactly(size + 2)
            while self._until(b"\r\n"):
                pass
        else:
            with contextlib.suppress(ConnectionError):
                while True:
                    self._held = b""
                    self._more()
        return status


def _head(method: str, path: str, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: traffic.test", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunked(body: bytes, size: int, *trailers: str, extension: str = "") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension.encode(), p) for p in pieces)
    return framed + b"0\r\n" + "".join(f"{each}\r\n" for each in trailers).encode() + b"\r\n"


def pipelined(address: Address, tag: str, count: int = 20) -> Sent:
    """Many requests in one write, bodies among them; then all answers are read."""
    methods = ["GET", "POST", "HEAD", "GET"]
    wire = b""
    for number in range(count):
        method = methods[number % 4]
        body = b"p" * (number * 7) if method == "POST" else b""
        fields = [f"Content-Length: {len(body)}"] if method == "POST" else []
        wire += _head(method, f"/size/{number * 50}/{tag}{number}", *fields) + body
    with _connect(address) as client:
        client.sendall(wire)
        reader = Reader(client)
        for number in range(count):
            assert reader.response(methods[number % 4]) == 200
    return Sent(count, count)


def byte_by_byte(address: Address, tag: str) -> Sent:
    """A request whose every byte is a write of its own, then one after it."""
    wire = _head("POST", f"/size/9/{tag}", "content-length: 12") + b"twelve bytes"
    with _connect(address) as client:
        reader = Reader(client)
        for at in range(len(wire)):
            client.send(wire[at : at + 1])
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/1/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def split_everywhere(address: Address, tag: str, step: int = 1) -> Sent:
    """Two requests cut in two at each boundary in turn, on one connection."""
    count = 0
    with _connect(address) as client:
        reader = Reader(client)
        size = len(_head("POST", f"/size/3/{tag}000", "Content-Length: 5")) + 5
        for at in range(1, size, step):
            wire = _head("POST", f"/size/3/{tag}{at:03}", "Content-Length: 5") + b"12345"
            client.sendall(wire[:at])
            time.sleep(0.0005)
            client.sendall(wire[at:])
            assert reader.response() == 200
            count += 1
    return Sent(count, count)


def odd_fields(address: Address, tag: str) -> Sent:
    """Lower-case names, much white space, empty and long values, names in every case."""
    wire = (
        f"GET /size/4/{tag} HTTP/1.1\r\nhost:traffic.test\r\nx-empty:\r\nX-SPACE: \t  a b \t\r\n"
        f"x-long: {'l' * 6000}\r\nCoNtEnT-LeNgTh:0\r\n\r\n"
    ).encode()
    with _connect(address) as client:
        reader = Reader(client)
        client.sendall(wire)
        assert reader.response() == 200
        client.sendall(_head("GET", f"http://other.test/size/5/{tag}absolute?query=1"))
        assert reader.response() == 200
        client.sendall(b"\r\n" + _head("GET", f"/size/6/{tag}%20escaped?a=b#c"))
        assert reader.response() == 200
    return Sent(3, 3)


def many_pieces(address: Address, tag: str) -> Sent:
    """Requests by sendmsg with hundreds of small pieces, one of them empty."""
    count = 5
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(count):
            body = b"v" * 2000
            wire = _head("POST", f"/size/8/{tag}{number}", f"Content-Length: {len(body)}") + body
            pieces = [wire[at : at + 3] for at in range(0, len(wire), 3)]
            pieces.insert(2, b"")
            assert client.sendmsg(pieces) == len(wire)
            assert reader.response() == 200
    return Sent(count, count)


def sendfile_upload(address: Address, tag: str, size: int = 3_000_000) -> Sent:
    """An upload whose body leaves by sendfile."""
    with tempfile.TemporaryFile() as file, _connect(address) as client:
        file.truncate(size)
        client.sendall(_head("PUT", f"/size/2/{tag}", f"Content-Length: {size}"))
        client.sendfile(file)
        reader = Reader(client)
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/2/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def chunked_upload(address: Address, tag: str) -> Sent:
    """Chunked uploads: of many sizes, with extensions, with trailers, echoed back."""
    bodies = [(b"c" * 10_000, 1), (b"c" * 100_000, 4096), (b"", 1), (b"c" * 300_000, 65_536)]
    with _connect(address) as client:
        reader = Reader(client)
        for number, (body, size) in enumerate(bodies):
            wire = _head("POST", f"/size/7/{tag}{number}", "Transfer-Encoding: chunked")
            client.sendall(wire + _chunked(body, max(size, 1), extension=";name=v"))
            assert reader.response() == 200
        wire = _head("POST", f"/size/7/{tag}t", "Transfer-Encoding: chunked", "Trailer: X-Sum")
        client.sendall(wire + _chunked(b"c" * 50, 7, "X-Sum: 50"))
        assert reader.response() == 200
    return Sent(len(bodies) + 1, len(bodies) + 1)


def expect_continue(address: Address, tag: str) -> Sent:
    """Uploads that wait for the interim response before the body."""
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(3):
            fields = ("Content-Length: 4000", "Expect: 100-continue")
            client.sendall(_head("PUT", f"/size/3/{tag}{number}", *fields))
            client.settimeout(10)
            first = reader._until(b"\r\n\r\n")
            assert b" 100 " in first, first
            client.sendall(b"e" * 4000)
            assert reader.response() == 200
    return Sent(3, 3)


def slow_reader(address: Address, tag: str, path: str = "") -> Sent:
    """Reads a long answer in small pieces through a small window, then asks again."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(address)
        client.sendall(_head("GET", path or f"/size/400000/{tag}"))
        time.sleep(0.05)
        reader = Reader(client)
        assert reader.response() == 200
        client.sendall(_head("GET", f"/size/1/{tag}after"))
        assert reader.response() == 200
    return Sent(2, 2)


def half_close(address: Address, tag: str) -> Sent:
    """The client says all it has to say and closes its side before it reads."""
    with _connect(address) as client:
        client.sendall(_head("GET", f"/slow/30/{tag}", "Connection: close"))
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            Reader(client).response()
    return Sent(1, 0)


def http_1_0(address: Address, tag: str) -> Sent:
    """HTTP/1.0: closed after the answer, or kept alive on demand."""
    with _connect(address) as client:
        client.sendall(_head("GET", f"/size/40/{tag}", version="1.0"))
        assert Reader(client).response() == 200
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(3):
            path = f"/size/41/{tag}{number}"
            client.sendall(_head("GET", path, "Connection: keep-alive", version="1.0"))
            assert reader.response() == 200
    with _connect(address) as client:
        client.sendall(_head("GET", f"/chunked/3/500/{tag}", version="1.0"))
        assert Reader(client).response() == 200
    return Sent(5, 5)


def abort_head(address: Address, tag: str) -> Sent:
    """Requests whose head never ends, on a fresh connection and after another request."""
    with _connect(address) as client:
        client.sendall(f"GET /size/3/{tag}0 HTTP/1.1\r\nHost: tra".encode())
        time.sleep(0.03)
    with _connect(address) as client:
        client.sendall(_head("GET", f"/size/3/{tag}1"))
        assert Reader(client).response() == 200
        client.sendall(f"GET /size/3/{tag}2 HT".encode())
        time.sleep(0.03)
        _reset(client)
    return Sent(1, 1)


def abort_body(address: Address, tag: str) -> Sent:
    """Uploads that end in the middle of the body: closed, and reset."""
    for number, reset in enumerate((False, True)):
        with _connect(address) as client:
            _meet(client, f"{tag}{number}")
            client.sendall(_head("PUT", f"/size/3/{tag}{number}", "Content-Length: 100000"))
            client.sendall(b"a" * 30_000)
            time.sleep(0.05)
            if reset:
                _reset(client)
    return Sent(4, 2)


def _meet(client: socket.socket, tag: str) -> None:
    # A server that is busy would accept a connection that was reset without knowing whose it was.
    client.sendall(_head("GET", f"/size/1/met-{tag}"))
    assert Reader(client).response() == 200


def abort_answer(address: Address, tag: str, path: str = "") -> Sent:
    """Downloads that are left in the middle, and answers that nobody waits for."""
    for reset in (False, True):
        with _connect(address) as client:
            client.sendall(_head("GET", path or f"/size/9000000/left-{tag}"))
            assert client.recv(20_000)
            if reset:
                _reset(client)
    for number in range(2):
        with _connect(address) as client:
            _meet(client, f"{tag}{number}")
            client.sendall(_head("GET", f"/slow/300/{tag}{number}"))
            time.sleep(0.05)
            if number:
                _reset(client)
    return Sent(6, 2)


def abort_second(address: Address, tag: str) -> Sent:
    """A connection that is kept alive, and left during its third request."""
    with _connect(address) as client:
        reader = Reader(client)
        for number in range(2):
            client.sendall(_head("GET", f"/size/20/{tag}{number}"))
            assert reader.response() == 200
        client.sendall(_head("GET", f"/slow/300/{tag}2"))
        time.sleep(0.05)
    return Sent(3, 2)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


KINDS: Final[dict[str, Callable[[Address, str], Sent]]] = {
    each.__name__: each
    for each in (
        pipelined,
        byte_by_byte,
        split_everywhere,
        odd_fields,
        many_pieces,
        sendfile_upload,
        chunked_upload,
        expect_continue,
        slow_reader,
        half_close,
        http_1_0,
        abort_head,
        abort_body,
        abort_answer,
        abort_second,
    )
}
"""By name; each needs a server with the paths of ``node/server.js``."""
