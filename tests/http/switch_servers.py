"""Real servers and proxies that change the protocol of a connection, each with a log of its own."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from aiohttp import WSMsgType, web

from tests.http.servers import READY_S, Server, search_path
from tests.requirements import unmet
from tests.support.sockets import listens

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Nghttpx", "Tinyproxy", "WebSocketServer"]

_NGHTTPX_LOG: Final = (
    '{"method":"$method","uri":"$path","status":$status,"sent":$body_bytes_sent,'
    '"port":$remote_port,"alpn":"$alpn"}'
)
_TINYPROXY: Final = """\
Listen {address}
Port {port}
Timeout 30
LogFile "{log}"
LogLevel Connect
PidFile "{work}/tinyproxy.pid"
MaxClients 50
DisableViaHeader Yes
"""
_CONNECT_LINE: Final = re.compile(r"Request \(file descriptor \d+\): (\S+) (\S+) HTTP/1\.\d")


class _Proxy(Server):
    # Says that it is ready by listening: a connection would leave a trace.
    def _is_ready(self) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if listens(self.port):
                return True
            time.sleep(0.02)
        return False


class Nghttpx(_Proxy):
    """nghttpx, which takes the upgrade to HTTP/2 in the clear (RFC 7540 section 3.2).

    Args:
        work: Directory for its files.
        backend: Port of a server of HTTP/1 on the same address.
    """

    name = "nghttpx"

    def __init__(self, work: Path, backend: int) -> None:
        super().__init__(work)
        self._backend = backend

    def argv(self) -> Sequence[str]:
        found = shutil.which("nghttpx", path=search_path())
        if found is None:
            unmet("bpf", "no nghttpx (Debian: nghttp2-proxy)")
        return [
            *(found, f"-f{self.address},{self.port};no-tls", f"-b{self.address},{self._backend}"),
            *("--workers=1", f"--accesslog-file={self.log}", "--no-server-rewrite"),
            *(f"--accesslog-format={_NGHTTPX_LOG}", f"--errorlog-file={self.work}/error.log"),
            *("--conf=/dev/null", "--single-process", "--single-thread"),
        ]


class Tinyproxy(_Proxy):
    """tinyproxy, which makes tunnels (RFC 9110 section 9.3.6)."""

    name = "tinyproxy"

    def argv(self) -> Sequence[str]:
        found = shutil.which("tinyproxy", path=search_path())
        if found is None:
            unmet("bpf", "no tinyproxy (Debian: tinyproxy-bin)")
        settings = self.work / "tinyproxy.conf"
        settings.write_text(
            _TINYPROXY.format(address=self.address, port=self.port, log=self.log, work=self.work)
        )
        return [found, "-d", "-c", str(settings)]

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text()
        return [{"method": m[1], "uri": m[2]} for m in _CONNECT_LINE.finditer(text)]


class WebSocketServer(Server):
    """aiohttp, which echoes messages; a line for each connection says how many."""

    name = "aiohttp"

    def argv(self) -> Sequence[str]:
        arguments = [self.address, str(self.port), str(self.log)]
        return [sys.executable, "-m", "tests.http.switch_servers", *arguments]


def _serve(address: str, port: int, written: TextIO) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        count = size = 0
        async for message in answer:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                count += 1
                size += len(message.data)
                await answer.send_str("echo")
        peer = request.transport.get_extra_info("peername") if request.transport else (0, 0)
        line = {"uri": request.path, "messages": count, "bytes": size, "port": peer[1]}
        written.write(json.dumps(line) + "\n")
        written.flush()
        return answer

    def say_ready(_: str) -> None:
        print("ready", flush=True)

    app = web.Application()
    app.router.add_get("/{name:.*}", echo)
    web.run_app(app, host=address, port=port, print=say_ready)


if __name__ == "__main__":
    with Path(sys.argv[3]).open("a") as opened:
        _serve(sys.argv[1], int(sys.argv[2]), opened)
