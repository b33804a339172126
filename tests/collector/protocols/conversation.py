"""Conversations that the h2 library holds with itself, and what an observer should see in them.

What is expected comes from what was asked of h2, and header sizes from the frames as hyperframe
reads them; nothing of it knows the parser.
"""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, PushPromiseFrame

from collector.protocols.calls import NO_STATUS, NOT_GRPC, UNMEASURED, Outcome, Side
from collector.protocols.frames import PREFACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.collector.protocols.wire import Piece

LONG = "x" * 20_000  # needs CONTINUATION frames


@functools.lru_cache(64)
def conversation(seed: int, streams: int, concurrent: int = 100) -> Conversation:
    """Return a conversation, made only once: making one takes longer than reading it."""
    return Conversation(seed, streams, concurrent)


@dataclass
class Expected:
    stream_id: int
    method: str
    path: str
    host: str
    opened_at: int
    """Number of the piece that holds the request's header."""
    status: int = NO_STATUS
    grpc_status: int = NOT_GRPC
    outcome: Outcome = Outcome.UNANSWERED
    request_body: int = 0
    response_body: int = 0
    is_over: bool = False

    def end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.is_over = True


@dataclass
class Conversation:
    """Random but repeatable: many streams at once, of every kind."""

    seed: int
    streams: int = 12
    concurrent: int = 100
    paths: int = 0
    """How many different paths; 0: all differ."""
    pieces: list[Piece] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.client = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.server = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._hold()

    def header_sizes(self) -> tuple[dict[int, int], dict[int, int]]:
        """Octets of field blocks per stream, of requests and of responses."""
        sizes: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
        for side in Side:
            data = b"".join(data for piece_side, data in self.pieces if piece_side is side)
            view = memoryview(data)[len(PREFACE) if side is Side.REQUEST else 0 :]
            target: tuple[Side, int] = (side, 0)
            while view:
                item, length = Frame.parse_frame_header(view[:9])
                item.parse_body(view[9 : 9 + length])
                view = view[9 + length :]
                if isinstance(item, PushPromiseFrame):
                    target = (Side.REQUEST, item.promised_stream_id)
                elif isinstance(item, HeadersFrame):
                    target = (side, item.stream_id)
                elif not isinstance(item, ContinuationFrame):
                    continue
                sizes[target[0]][target[1]] += len(item.data)
        return sizes

    def _hold(self) -> None:
        self.client.initiate_connection()
        self.server.initiate_connection()
        self._pump()
        if self.random.random() < 0.5:
            self.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 300})
            self.server.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 8_000})
            self.server.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 30_000})
            self._pump()
        waiting = self.streams
        live: list[Iterator[None]] = []
        while waiting or live:
            if waiting and len(live) < self.concurrent and self.random.random() < 0.5:
                waiting -= 1
                live.append(self._live())
            if live:
                one = self.random.choice(live)
                if next(one, self) is self:
                    live.remove(one)
            if self.random.random() < 0.4:
                self._pump()
        self._pump()

    def _pump(self) -> None:
        while True:
            moved = False
            for side, speaker, listener in (
                (Side.REQUEST, self.client, self.server),
                (Side.RESPONSE, self.server, self.client),
            ):
                data = speaker.data_to_send()
                if not data:
                    continue
                moved = True
                self.pieces.append((side, data))
                for event in listener.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        listener.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
            if not moved:
                return

    def _open(self, method: str, path: str) -> Expected:
        stream_id = self.client.get_next_available_stream_id()
        # Everything before must be on the wire for the number of the next piece to be right.
        self._pump()
        host = self.random.choice(("shop.test", "cart.test:8080"))
        expected = Expected(stream_id, method, path.partition("?")[0], host, len(self.pieces))
        self.expected.append(expected)
        return expected

    def _live(self) -> Iterator[None]:
        kind = self.random.choice(
            ("get", "post", "grpc", "grpc", "cancel", "refuse", "break", "push", "early", "head")
        )
        number = len(self.expected)
        path = f"/{kind}/{number if not self.paths else number % self.paths}?q={number}"
        one = self._open("GET" if kind in ("get", "push") else "POST", path)
        yield from self._talk(kind, path, one)

    def _talk(self, kind: str, path: str, one: Expected) -> Iterator[None]:
        head = [
            (":method", one.method),
            (":scheme", "http"),
            (":authority", one.host),
            (":path", path),
            ("x-number", str(self.random.randrange(5))),
        ]
        if kind == "grpc":
            head += [("content-type", "application/grpc+proto"), ("te", "trailers")]
        priority = {"priority_weight": 9} if self.random.random() < 0.3 else {}
        if not priority and self.random.random() < 0.1:
            head.append(("x-long", LONG))
        has_body = kind not in ("get", "push", "head")
        self.client.send_headers(one.stream_id, head, end_stream=not has_body, **priority)
        yield
        if kind == "early":
            # The response ends before the request does.
            yield from self._send(self.client, one, "request_body", end=False)
            self._pump()
            self.server.send_headers(one.stream_id, [(":status", "413")], end_stream=True)
            one.status = 413
            one.end(Outcome.ANSWERED)
            self._pump()
            self.server.reset_stream(one.stream_id, 0)
            self._pump()
            return
        if has_body:
            with_trailers = self.random.random() < 0.2
            yield from self._send(self.client, one, "request_body", end=not with_trailers)
            if with_trailers:
                self.client.send_headers(one.stream_id, [("x-sum", "1")], end_stream=True)
        self._pump()
        yield
        if kind == "refuse":
            self._reset(self.server, one, Outcome.UNANSWERED)
            return
        if kind == "cancel" and self.random.random() < 0.5:
            self._reset(self.client, one, Outcome.UNANSWERED)
            return
        if kind == "push":
            self._push(one)
        if self.random.random() < 0.2:
            self.server.send_headers(one.stream_id, [(":status", "103"), ("link", "</a>")])
            yield
        yield from self._answer(kind, one)

    def _answer(self, kind: str, one: Expected) -> Iterator[None]:
        one.status = 200 if kind == "grpc" else self.random.choice((200, 404, 418, 503))
        head = [(":status", str(one.status)), ("server", "h2")]
        if kind == "grpc":
            head.append(("content-type", "application/grpc"))
            code = self.random.choice((0, 0, 5, 14))
            one.grpc_status = code
            if code == 5:  # an answer of trailers only
                head.append(("grpc-status", "5"))
                self.server.send_headers(one.stream_id, head, end_stream=True)
                one.end(Outcome.ANSWERED)
                return
        if kind == "head":
            self.server.send_headers(one.stream_id, head, end_stream=True)
            one.end(Outcome.ANSWERED)
            return
        self.server.send_headers(one.stream_id, head)
        yield
        if kind in ("cancel", "break"):
            yield from self._send(self.server, one, "response_body", end=False)
            self._reset(self.client if kind == "cancel" else self.server, one, Outcome.ABORTED)
            return
        yield from self._send(self.server, one, "response_body", end=kind != "grpc")
        if kind == "grpc":
            trailers = [("grpc-status", str(one.grpc_status)), ("grpc-message", "")]
            self.server.send_headers(one.stream_id, trailers, end_stream=True)
        one.end(Outcome.ANSWERED)

    def _push(self, one: Expected) -> None:
        stream_id = self.server.get_next_available_stream_id()
        self._pump()
        path = f"/pushed/{stream_id}"
        pushed = Expected(stream_id, "GET", path, one.host, len(self.pieces))
        head = [(":method", "GET"), (":scheme", "http"), (":authority", one.host), (":path", path)]
        self.server.push_stream(one.stream_id, stream_id, head)
        self.server.send_headers(stream_id, [(":status", "200")])
        size = min(7, self.server.local_flow_control_window(stream_id))
        self.server.send_data(stream_id, b"p" * size, end_stream=True)
        pushed.response_body = size
        pushed.status = 200
        pushed.end(Outcome.ANSWERED)
        self.expected.append(pushed)
        self._pump()

    def _reset(self, by: h2.connection.H2Connection, one: Expected, outcome: Outcome) -> None:
        self._pump()
        by.reset_stream(one.stream_id, 8)
        if one.grpc_status != NOT_GRPC:
            one.grpc_status = UNMEASURED
        one.end(outcome)
        self._pump()

    def _send(
        self, by: h2.connection.H2Connection, one: Expected, figure: str, *, end: bool
    ) -> Iterator[None]:
        left = self.random.choice((0, 1, 10, 1_000, 20_000, 70_000))
        while left:
            window = by.local_flow_control_window(one.stream_id)
            padding = self.random.choice((None, None, 0, 1, 255))
            size = min(left, window - (padding or 0) - 1, by.max_outbound_frame_size - 256)
            if size <= 0:
                self._pump()
                yield
                continue
            by.send_data(one.stream_id, b"d" * size, pad_length=padding)
            setattr(one, figure, getattr(one, figure) + size)
            left -= size
            yield
        if end:
            by.end_stream(one.stream_id)
