"""TCP programs that say who they are, so that every connection is known by both names.

``named_traffic.py server NAME HOST PORT [HOST PORT ...]`` answers each request with its name and on
SIGTERM prints how many connections it had from whom. ``client NAME PLAN`` does the steps of a JSON
file, each ``{"host", "port", "count"}``, and prints how many were answered by whom; ``asker NAME
HOST PORT [HOST PORT ...]`` asks all of them again and again until SIGTERM, and prints with the name
"" how many connections it had, answered or not, and with "?" how many were reset before connect()
could say that they were made. ``proxy`` is the sidecar
of a mesh: it takes what is redirected to it, inbound on 15006 and outbound on 15001,
and passes it on. ``ztunnel HOST`` is what an ambient mesh's proxy of the node does in the namespace
of the pod with that address: outbound it asks the other end's proxy on 15008, if there is one, and
inbound it comes to the application from the client's own address. Standard library only: it runs
inside the test pods.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 -- not to be found any more once the rights are gone
import json
import os
import signal
import socket
import struct
import sys
import threading
from pathlib import Path

REQUEST = 100
RESPONSE = 1000
PROXY_USER = 1337
INBOUND, OUTBOUND = 15006, 15001
TUNNEL = 15008
TUNNEL_HEAD = 2
ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST
TRANSPARENT = 19  # IP_TRANSPARENT
TUNNEL_MARK = 0x539


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(4096)
    return listener


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def serve(name: str, places: list[str]) -> None:
    served: dict[str, int] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def accept(listener: socket.socket) -> None:
        listener.settimeout(0.02)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(10)
                sender = read_exactly(connection, REQUEST).decode().rstrip()
                connection.sendall(name.encode().ljust(RESPONSE))
                with lock:
                    served[sender] = served.get(sender, 0) + 1

    threads = [
        threading.Thread(target=accept, args=(listen(host, int(port)),))
        for host, port in zip(places[::2], places[1::2], strict=True)
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    stop.set()  # what was accepted is answered
    for thread in threads:
        thread.join()
    print(json.dumps(served), flush=True)


def ask(name: str, host: str, port: int, counts: dict[str, int]) -> str:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as connection:
        connection.settimeout(10)
        try:
            connection.connect((host, port))
        except ConnectionResetError:
            counts["?"] += 1
            raise
        counts[""] += 1
        connection.sendall(name.encode().ljust(REQUEST))
        answer = read_exactly(connection, RESPONSE)
        assert len(answer) == RESPONSE, (host, port)
        return answer.decode().rstrip()


def call(name: str, plan: str) -> None:
    answered: dict[str, int] = {}
    for step in json.loads(Path(plan).read_text()):
        for _ in range(step["count"]):
            replier = ask(name, step["host"], step["port"], {"": 0, "?": 0})
            answered[replier] = answered.get(replier, 0) + 1
    print(json.dumps(answered), flush=True)
    sys.stdin.read()  # so that whoever looks the process up finds it, for as long as is wanted


def keep_asking(name: str, places: list[str]) -> None:
    answered, made = {}, {"": 0, "?": 0}
    print("ready", flush=True)
    while signal.sigtimedwait({signal.SIGTERM}, 0) is None:
        for host, port in zip(places[::2], places[1::2], strict=True):
            try:
                replier = ask(name, host, int(port), made)
            except (OSError, AssertionError):  # a server that is being replaced
                continue
            answered[replier] = answered.get(replier, 0) + 1
        signal.sigtimedwait(set(), 0.002)
    print(json.dumps(answered | made), flush=True)


def proxy() -> None:
    def accept(listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=relay, args=(connection, listener), daemon=True).start()

    for port in (INBOUND, OUTBOUND):
        # Made before the rights go, served after.
        threading.Thread(target=accept, args=(listen("0.0.0.0", port),), daemon=True).start()
    os.setuid(PROXY_USER)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    print("{}", flush=True)


def relay(connection: socket.socket, listener: socket.socket) -> None:
    inbound = listener.getsockname()[1] == INBOUND
    wanted = connection.getsockopt(socket.IPPROTO_IP, ORIGINAL_DESTINATION, 16)
    port, address = struct.unpack("!2xH4s8x", wanted)
    host = "127.0.0.1" if inbound else socket.inet_ntoa(address)
    with connection:
        connection.settimeout(10)
        exchange(connection, socket.create_connection((host, port), timeout=10))


def ztunnel(host: str) -> None:
    def accept(listener: socket.socket) -> None:
        while True:
            connection, (client, _) = listener.accept()
            arguments = connection, client, listener.getsockname()[1]
            threading.Thread(target=pass_on, args=arguments, daemon=True).start()

    def pass_on(connection: socket.socket, client: str, entry: int) -> None:
        with connection:
            connection.settimeout(10)
            if entry == TUNNEL:
                port = int.from_bytes(read_exactly(connection, TUNNEL_HEAD), "big")
            else:
                wanted = connection.getsockopt(socket.IPPROTO_IP, ORIGINAL_DESTINATION, 16)
                port, address = struct.unpack("!2xH4s8x", wanted)
            if entry != OUTBOUND:
                exchange(connection, marked(client, host, port))
                return
            try:
                further = marked("", socket.inet_ntoa(address), TUNNEL)
            except ConnectionRefusedError:
                exchange(connection, marked("", socket.inet_ntoa(address), port))
            else:
                exchange(connection, further, port.to_bytes(TUNNEL_HEAD, "big"))

    for listening in (("127.0.0.1", OUTBOUND), (host, INBOUND), (host, TUNNEL)):
        threading.Thread(target=accept, args=(listen(*listening),), daemon=True).start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    print("{}", flush=True)


def marked(source: str, host: str, port: int) -> socket.socket:
    further = socket.socket()
    further.settimeout(10)
    further.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TUNNEL_MARK)
    if source:
        further.setsockopt(socket.IPPROTO_IP, TRANSPARENT, 1)
        further.bind((source, 0))
    try:
        further.connect((host, port))
    except OSError:
        further.close()
        raise
    return further


def exchange(connection: socket.socket, further: socket.socket, head: bytes = b"") -> None:
    with further:
        further.sendall(head + read_exactly(connection, REQUEST))
        connection.sendall(read_exactly(further, RESPONSE))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    match sys.argv[1:]:
        case ["server", name, *places]:
            serve(name, places)
        case ["client", name, plan]:
            call(name, plan)
        case ["asker", name, *places]:
            keep_asking(name, places)
        case ["proxy"]:
            proxy()
        case ["ztunnel", host]:
            ztunnel(host)


if __name__ == "__main__":
    main()
