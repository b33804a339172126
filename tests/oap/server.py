"""An OAP's side of the access log: a gRPC server that collects, and misbehaves when told to.

A behaviour is called with the message iterator and the context of one stream and returns whether to
go on as usual. Streams without a behaviour are read to their half-close and answered.
"""

from __future__ import annotations

import threading
import time
from concurrent import futures

import grpc

PATH = "/skywalking.v3.EBPFAccessLogService/collect"


class Receiver:
    """Collects streams as lists of serialised messages."""

    def __init__(self, *, port=0, credentials=None, workers=8):
        self.streams = []
        self.started = 0
        self.metadata = []
        self.behaviours = []
        self.always = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers), options=[("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers([_Handler(self._collect)])
        if credentials is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        assert self.port

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        self._server.start()
        return self

    def stop(self, grace_s=None):
        """Stop; what was begun may go on for the grace."""
        stopped = self._server.stop(grace_s)
        if grace_s is None:
            self._closing.set()
        stopped.wait(10)
        self._closing.set()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def wait(self, seconds):
        """For behaviours: wait, but not beyond the end of the server."""
        self._closing.wait(seconds)

    def wait_for(self, count, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while len(self.streams) < count:
            assert time.monotonic() < deadline, f"{len(self.streams)} of {count} streams"
            time.sleep(0.01)

    def _collect(self, messages, context):
        with self._lock:
            self.started += 1
            self.metadata.append(dict(context.invocation_metadata()))
            behaviour = self.behaviours.pop(0) if self.behaviours else self.always
        if behaviour is not None:
            answer = behaviour(self, messages, context)
            if answer is not None:
                return answer
        stream = list(messages)
        if context.is_active():
            with self._lock:
                self.streams.append(stream)
        return b""


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, collect):
        self._method = grpc.stream_unary_rpc_method_handler(collect)

    def service(self, call_details):
        return self._method if call_details.method == PATH else None


def refuse(code):
    """End the stream with a code, before a message is read."""

    def behaviour(receiver, messages, context):
        context.abort(code, "as the test wants it")

    return behaviour


def refuse_after(count, code):
    """The same after so many messages."""

    def behaviour(receiver, messages, context):
        for _, _ in zip(range(count), messages, strict=False):
            pass
        context.abort(code, "as the test wants it")

    return behaviour


def early_answer(receiver, messages, context):
    """Answer after the first message."""
    next(iter(messages))
    return b""


def late_answer(seconds):
    """Read everything, keep it, answer later."""

    def behaviour(receiver, messages, context):
        receiver.streams.append(list(messages))
        receiver.wait(seconds)
        return b""

    return behaviour


def silent(receiver, messages, context):
    """Read nothing and say nothing, until the client gives up."""
    while context.is_active():
        receiver.wait(0.02)
    return b""


def slow(seconds):
    """Read one message in so many seconds."""

    def behaviour(receiver, messages, context):
        stream = []
        for message in messages:
            stream.append(message)
            receiver.wait(seconds)
        if context.is_active():
            receiver.streams.append(stream)
        return b""

    return behaviour


def main():
    """Serve until stdin closes; for benchmarks, which measure the other process."""
    import sys

    def drain(receiver, messages, context):
        for _ in messages:
            pass
        return b""

    with Receiver() as receiver:
        receiver.always = drain
        print(receiver.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
