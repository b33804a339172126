"""HTTP/2 and gRPC out of bytes, per core, beside h2 with hpack on the same bytes.

gRPC: unary calls of 100 bytes each way, every call with the same fields, as a client library sends
them: after the first call a header is a few indexed octets. HTTP/2: requests with a path of their
own each, as browsers and load generators send them, answered with 1,000 bytes.
"""

from __future__ import annotations

from functools import partial

import h2.config
import h2.connection
import h2.events
import hpack
from hyperframe.frame import Frame, HeadersFrame

from collector.protocols.calls import Call, Settings, Side
from collector.protocols.frames import PREFACE
from collector.protocols.http2 import Http2
from tests.bench.measure import Row, measure

CALLS = 20_000
FEW = 2_000
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def run() -> list[Row]:
    rows = []
    for name, create in (("gRPC unary", _grpc), ("HTTP/2", _http2)):
        pieces = create(CALLS)
        few = create(FEW)
        size = sum(len(data) for _, data in pieces)
        note = f"{size / CALLS:,.0f} B, {len(pieces) / CALLS:.1f} pieces a call"
        rows += [
            measure(f"{name}: Http2", CALLS, partial(_parse, pieces), unit="call", note=note),
            measure(
                f"{name}: hyperframe and hpack",
                FEW,
                partial(_decode_by_hpack, few),
                unit="call",
                note="frames and fields only, no calls",
            ),
            measure(
                f"{name}: h2",
                FEW,
                partial(_parse_by_h2, few),
                unit="call",
                note="both halves, which must answer to go on",
            ),
        ]
    return rows


def _parse(pieces: list[tuple[Side, bytes]]) -> None:
    done: list[Call] = []
    parser = Http2(done, Settings())
    for number, (side, data) in enumerate(pieces):
        parser.feed(side, data, number, number + 1)
    assert len(done) == len(pieces) // 2 - 1


def _decode_by_hpack(pieces: list[tuple[Side, bytes]]) -> None:
    decoders = [hpack.Decoder() for _ in Side]
    done = 0
    for side, data in pieces:
        view = memoryview(data)
        if data.startswith(PREFACE):
            view = view[len(PREFACE) :]
        while view:
            frame, length = Frame.parse_frame_header(view[:9])
            frame.parse_body(view[9 : 9 + length])
            view = view[9 + length :]
            if isinstance(frame, HeadersFrame):
                decoders[side].decode(frame.data)
            done += side is Side.RESPONSE and "END_STREAM" in frame.flags
    assert done == len(pieces) // 2 - 1


def _parse_by_h2(pieces: list[tuple[Side, bytes]]) -> None:
    # The server's half reads the requests. It must answer itself, or it refuses to go on; what it
    # says is that of the client's half, which is how h2 follows a conversation.
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    done = 0
    for side, data in pieces:
        if side is Side.REQUEST:
            for event in server.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    assert event.headers is not None
                    client.send_headers(event.stream_id, event.headers, end_stream=True)
                elif isinstance(event, h2.events.DataReceived):
                    server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        else:
            for event in client.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    done += 1
                    # The server's half learns that the stream is over.
                    server.send_headers(event.stream_id, ((":status", "200"),), end_stream=True)
                elif isinstance(event, h2.events.DataReceived):
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        client.data_to_send()
        server.data_to_send()
    assert done == len(pieces) // 2 - 1


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big")
    return head + payload


def _grpc(calls: int) -> list[tuple[Side, bytes]]:
    client = hpack.Encoder()
    server = hpack.Encoder()
    message = bytes(5) + b"m" * 95
    pieces = [(Side.REQUEST, PREFACE + SETTINGS), (Side.RESPONSE, SETTINGS)]
    request = [
        *((":method", "POST"), (":scheme", "http"), (":authority", "cart.shop:7070")),
        *((":path", "/hipstershop.CartService/GetCart"), ("te", "trailers")),
        *(("content-type", "application/grpc"), ("user-agent", "grpc-python/1.70.0")),
    ]
    response = [(":status", "200"), ("content-type", "application/grpc")]
    trailers = [("grpc-status", "0"), ("grpc-message", "")]
    for stream_id in range(1, 2 * calls, 2):
        asked = _frame(1, 4, stream_id, client.encode(request)) + _frame(0, 1, stream_id, message)
        answered = (
            _frame(1, 4, stream_id, server.encode(response))
            + _frame(0, 0, stream_id, message)
            + _frame(1, 5, stream_id, server.encode(trailers))
        )
        pieces += [(Side.REQUEST, asked), (Side.RESPONSE, answered)]
    return pieces


def _http2(calls: int) -> list[tuple[Side, bytes]]:
    client = hpack.Encoder()
    server = hpack.Encoder()
    body = b"b" * 1_000
    pieces = [(Side.REQUEST, PREFACE + SETTINGS), (Side.RESPONSE, SETTINGS)]
    for number in range(calls):
        stream_id = 2 * number + 1
        request = [
            hpack.HeaderTuple(":method", "GET"),
            hpack.HeaderTuple(":scheme", "http"),
            hpack.HeaderTuple(":authority", "shop.test"),
            hpack.NeverIndexedHeaderTuple(":path", f"/products/{number}?currency=EUR"),
            hpack.HeaderTuple("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
            hpack.HeaderTuple("accept", "*/*"),
        ]
        response = [
            hpack.HeaderTuple(":status", "200"),
            hpack.HeaderTuple("content-type", "text/html"),
            hpack.NeverIndexedHeaderTuple("content-length", "1000"),
        ]
        asked = _frame(1, 5, stream_id, client.encode(request))
        answered = _frame(1, 4, stream_id, server.encode(response)) + _frame(0, 1, stream_id, body)
        pieces += [(Side.REQUEST, asked), (Side.RESPONSE, answered)]
    return pieces
