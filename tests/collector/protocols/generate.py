"""HTTP/1 conversations that are valid by construction, and what they must be read as."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from collector.protocols.calls import UNMEASURED, Call, Outcome, Side, Version

Turn = tuple[Side, bytes, int, int]


@dataclass
class Message:
    """One request and its response on the wire, and the call that they make."""

    request: bytes
    response: bytes
    call: Call
    headers: dict[str, str] = field(default_factory=dict)
    target: str = ""


@dataclass
class Framed:
    lines: list[str]
    body: bytes
    size: int
    trailer: int


_TEXT = st.binary(max_size=60)
_NAMES = st.sampled_from(["X-Id", "Accept", "cookie", "Upgrade-Insecure-Requests", "Hostess"])
_VALUES = st.text("abc XYZ:;,=/0123456789", max_size=30).map(str.strip)
_SEGMENT = st.text("abcdefgh0123456789-._~%", max_size=8)


@st.composite
def _framed(draw: st.DrawFn, can_be_empty: bool, is_strict: bool) -> Framed:
    kind = draw(st.sampled_from(["length", "chunked"] + ["none"] * can_be_empty))
    if kind == "none":
        return Framed([], b"", 0, 0)
    if kind == "length":
        body = draw(_TEXT)
        name = draw(st.sampled_from(["Content-Length", "content-length"]))
        times = 1 if is_strict else draw(st.integers(1, 2))
        return Framed([f"{name}: {len(body)}"] * times, body, len(body), 0)
    parts = [part for part in draw(st.lists(_TEXT, max_size=3)) if part]
    extension = draw(st.sampled_from(["", ";a", ';a="b c"']))
    size_form = draw(st.sampled_from(["{:x}", "{:X}", "{:04x}"]))
    trailer = "".join(f"T{n}: x\r\n" for n in range(draw(st.integers(0, 2))))
    text = b"".join(
        f"{size_form.format(len(part))}{extension}\r\n".encode() + part + b"\r\n" for part in parts
    )
    text += f"0{extension}\r\n{trailer}\r\n".encode()
    size = sum(map(len, parts))
    coding = draw(st.sampled_from(["chunked", "gzip, chunked"]))
    return Framed([f"Transfer-Encoding: {coding}"], text, size, len(trailer) + 2 * bool(trailer))


@st.composite
def messages(draw: st.DrawFn, is_strict: bool = False) -> Message:
    """A request and its response; strict ones are what any parser takes."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]))
    path = "/" + "/".join(draw(st.lists(_SEGMENT, max_size=3)))
    if path.startswith("//"):
        path = "/x" + path
    query = draw(st.sampled_from(["", "?", "?a=b&c"]))
    host = draw(st.sampled_from(["a", "shop.ns:8080", "10.0.0.1"]))
    target = path + query
    if not is_strict and draw(st.booleans()):
        target = f"http://{host}{target}"
    content = answer = Framed([], b"", 0, 0)
    if method in ("POST", "PUT"):
        content = draw(_framed(can_be_empty=True, is_strict=is_strict))
    fields = draw(st.dictionaries(_NAMES, _VALUES, max_size=3))
    lines = [f"Host: {host}", *(f"{k}: {v}" for k, v in fields.items()), *content.lines]
    lines = draw(st.permutations(lines))
    request_head = (
        f"{method} {target} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    )
    status = draw(st.sampled_from([200, 201, 204, 304, 404, 500]))
    is_bare = method == "HEAD" or status in (204, 304)
    if status != 204:
        answer = draw(_framed(can_be_empty=False, is_strict=is_strict))
    reply = f"HTTP/1.1 {status} {draw(st.sampled_from(['OK', '', 'Not really']))}\r\n"
    reply += "".join(f"{line}\r\n" for line in [*answer.lines, "Server: x"]) + "\r\n"
    interim = "" if is_strict else draw(st.sampled_from(["", "HTTP/1.1 100 Continue\r\n\r\n"]))
    request_text, response_text = request_head.encode(), (interim + reply).encode()
    if not is_strict and draw(st.booleans()):
        request_text = request_text.replace(b"\r\n", b"\n")
    call = Call(
        version=Version.HTTP_1_1,
        start_ns=0,
        method=method,
        path=path,
        host=host,
        status=status,
        outcome=Outcome.ANSWERED,
        request_header_size=len(request_text) + content.trailer,
        request_body_size=content.size,
        response_header_size=len(response_text) + (0 if is_bare else answer.trailer),
        response_body_size=0 if is_bare else answer.size,
    )
    if not is_bare:
        response_text += answer.body
    return Message(request_text + content.body, response_text, call, fields, target)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Turn], list[Call]]:
    """Turns of a connection, some of them pipelined, and its calls with their times."""
    turns: list[Turn] = []
    calls: list[Call] = []
    now = 0
    for group in draw(st.lists(st.lists(messages(), min_size=1, max_size=3), max_size=4)):
        start, end = now + 10, now + 15
        now += 20
        turns.append((Side.REQUEST, b"".join(m.request for m in group), start, end))
        turns.append((Side.RESPONSE, b"".join(m.response for m in group), start + 10, end + 10))
        for message in group:
            message.call.start_ns = start
            message.call.first_byte_ns = message.call.end_ns = end + 10
            calls.append(message.call)
    if draw(st.booleans()):
        turns.append((Side.REQUEST, b"GET /last HTTP/1.0\r\n\r\n", now + 10, now + 15))
        reply = b"HTTP/1.0 200 OK\r\n\r\n"
        body = draw(_TEXT)
        turns.append((Side.RESPONSE, reply + body, now + 20, now + 25))
        calls.append(
            Call(
                version=Version.HTTP_1_0,
                start_ns=now + 10,
                method="GET",
                path="/last",
                status=200,
                outcome=Outcome.ANSWERED,
                request_header_size=22,
                response_header_size=len(reply),
                response_body_size=len(body),
                first_byte_ns=now + 25,
                end_ns=now + 25,
            )
        )
    elif draw(st.booleans()):
        turns.append((Side.REQUEST, b"GET /last HTTP/1.0\r\n\r\n", now + 10, now + 15))
        calls.append(
            Call(
                version=Version.HTTP_1_0,
                start_ns=now + 10,
                method="GET",
                path="/last",
                request_header_size=22,
                first_byte_ns=UNMEASURED,
                end_ns=now + 100,
            )
        )
    return turns, calls


def cut(turns: list[Turn], sizes: list[int]) -> list[Turn]:
    """The same turns in pieces of those sizes, used in turn."""
    if not sizes:
        return turns
    pieces: list[Turn] = []
    number = 0
    for side, data, start_ns, end_ns in turns:
        at = 0
        while at < len(data):
            size = sizes[number % len(sizes)]
            number += 1
            pieces.append((side, data[at : at + size], start_ns, end_ns))
            at += size
    return pieces
