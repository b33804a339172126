"""The grpcio server of the traffic suite, inside TLS if it is given a certificate and its key.

``python -m tests.http.grpc_server ADDRESS PORT LOG [CERTIFICATE KEY]``. Answers as
``node/server.js`` does with KIND grpc: what a call does is said in its ``x-test`` metadata, and a
line of JSON is written when it is over. ``ready`` goes to standard output.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICE = "podwire.test.Echo"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Line:
    """One call; written once it is over."""

    def __init__(self, log: Callable[[dict[str, Any]], None], method: str, context: Any) -> None:
        given = dict(context.invocation_metadata())
        self.plan: dict[str, Any] = json.loads(given.get("x-test", "{}"))
        self.received = self.sent = self.messages = 0
        self.code = 0
        self.done = False
        self._context = context
        self._fixed = {
            "method": "POST",
            "uri": f"/{SERVICE}/{method}",
            "port": int(context.peer().rpartition(":")[2]),
            "id": given.get("x-test-id", ""),
        }
        self._log = log
        if not context.add_callback(self._over):
            self._over()

    def _over(self) -> None:
        self._log(
            self._fixed
            | {
                "grpc_status": self.code if self.done else 1,
                "cancelled": not self.done,
                "received": self.received,
                "sent": self.sent,
                "messages": self.messages,
            }
        )

    def fail(self) -> NoReturn:
        """End the call with the status that it asked for."""
        self.code, self.done = self.plan["code"], True
        self._context.abort(_CODES[self.code], self.plan.get("message", "asked for"))
        raise AssertionError


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The service, without generated code."""

    def __init__(self, log: Callable[[dict[str, Any]], None]) -> None:
        self._log = log
        self._methods = {
            f"/{SERVICE}/Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            f"/{SERVICE}/ServerStream": grpc.unary_stream_rpc_method_handler(self._server_stream),
            f"/{SERVICE}/ClientStream": grpc.stream_unary_rpc_method_handler(self._client_stream),
            f"/{SERVICE}/Bidi": grpc.stream_stream_rpc_method_handler(self._bidi),
        }

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        return self._methods.get(handler_call_details.method)

    def _unary(self, request: bytes, context: Any) -> bytes:
        line = Line(self._log, "Unary", context)
        line.received += 5 + len(request)
        while line.plan.get("late") and context.is_active():
            time.sleep(0.01)
        if line.plan.get("code"):
            line.fail()
        answer = bytes(line.plan["size"]) if "size" in line.plan else request
        line.sent += 5 + len(answer)
        line.done = context.is_active()
        return answer

    def _server_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        line = Line(self._log, "ServerStream", context)
        line.received += 5 + len(request)
        answer = bytes(line.plan.get("size", 10))
        for _ in range(line.plan.get("count", 0)):
            if not context.is_active():
                return
            line.sent += 5 + len(answer)
            yield answer
            time.sleep(line.plan.get("delay", 0) / 1000)
        if line.plan.get("code"):
            line.fail()
        line.done = context.is_active()

    def _client_stream(self, requests: Iterator[bytes], context: Any) -> bytes:
        line = Line(self._log, "ClientStream", context)
        for request in requests:
            line.received += 5 + len(request)
            line.messages += 1
        if line.plan.get("code"):
            line.fail()
        answer = str(line.messages).encode()
        line.sent += 5 + len(answer)
        line.done = context.is_active()
        return answer

    def _bidi(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        line = Line(self._log, "Bidi", context)
        for request in requests:
            line.received += 5 + len(request)
            line.sent += 5 + len(request)
            yield request
        line.done = context.is_active()


def main() -> None:
    """Serve until SIGTERM."""
    address, port, path, *files = sys.argv[1:]
    lock = threading.Lock()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with open(path, "a", encoding="utf-8") as file:

        def log(line: dict[str, Any]) -> None:
            with lock:
                file.write(json.dumps(line) + "\n")
                file.flush()

        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        server = grpc.server(ThreadPoolExecutor(32), handlers=[Echo(log)], options=options)
        where = f"{address}:{port}"
        if files:
            certificate, key = (Path(file).read_bytes() for file in files)
            server.add_secure_port(where, grpc.ssl_server_credentials([(key, certificate)]))
        else:
            server.add_insecure_port(where)
        server.start()
        print("ready", flush=True)
        over.wait()
        server.stop(5).wait()


if __name__ == "__main__":
    main()
