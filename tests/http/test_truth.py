"""What nginx's numbers mean, by bytes counted beside it; and that a comparison misses nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import pytest

from collector.protocols.calls import NOT_GRPC, Outcome, Side
from tests.http import clients, raw, truth
from tests.http.observed import Witness
from tests.http.servers import Nginx, NodeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST: Final = "127.0.0.1"
FRAME: Final = 9
DATA, HEADERS = 0, 1
PADDED, PRIORITY = 0x08, 0x20
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    with (
        NodeServer(tmp_path / "node", "http") as node,
        Nginx(tmp_path / "nginx", node.port) as server,
    ):
        yield server


def _sums(lines: list[dict[str, str]], *names: str) -> dict[int, tuple[int, ...]]:
    total: dict[int, list[int]] = defaultdict(lambda: [0] * len(names))
    for line in lines:
        for place, name in enumerate(names):
            total[int(line["port"])][place] += int(line[name])
    return {port: tuple(sums) for port, sums in total.items()}


@pytest.mark.bpf
def test_nginx_counts_every_byte_of_http1(nginx: Nginx) -> None:
    """Framing and interim responses included: the sums are all that the connection said."""
    with Witness((HOST, nginx.port), None) as witness:
        address = witness.address
        for name in ("byte_by_byte", "chunked_upload", "expect_continue", "many_pieces"):
            raw.KINDS[name](address, name)
        clients.keep_alive(address, "keep", 40)
        clients.curl_each(
            address, [("/static/1k", ("-I",)), ("/limited", ("-H", "Expect: 100-continue"))]
        )
    nginx.stop()
    sums = _sums(nginx.lines(), "request_length", "bytes_sent")
    assert len(sums) == len(witness.taps) == 7
    for tap in witness.taps:
        assert sums[tap.port] == (tap.said[Side.REQUEST], tap.said[Side.RESPONSE])


def _frames(said: bytes) -> Iterator[tuple[int, int, int]]:
    at = len(PREFACE) if said.startswith(PREFACE) else 0
    while at < len(said):
        length = int.from_bytes(said[at : at + 3], "big")
        yield said[at + 3], said[at + 4], length
        at += FRAME + length
    assert at == len(said)


@pytest.mark.bpf
def test_nginx_counts_blocks_and_content_of_http2(nginx: Nginx) -> None:
    """``$request_length`` without frame headers and priority, ``$bytes_sent`` with the former."""
    with Witness((HOST, nginx.port2), None, keeps=True) as witness:
        address = witness.address
        clients.h2load(address, ["/static/1k", "/static/100k", "/static/0"], 60, 2, streams=10)
        clients.h2load(address, ["/size/5/up"], 10, 1, body=40_000)
        clients.curl_each(address, [("/return/204", ("--http2-prior-knowledge",))])
    nginx.stop()
    lines = nginx.lines()
    sums = _sums(lines, "request_length", "bytes_sent", "body_bytes_sent")
    assert len(sums) == len(witness.taps) == 4
    for tap in witness.taps:
        asked = sent = content = 0
        for kind, flags, length in _frames(bytes(tap.kept[Side.REQUEST])):
            assert not flags & PADDED or kind not in (DATA, HEADERS)
            if kind in (DATA, HEADERS):
                asked += length - 5 * (kind == HEADERS and bool(flags & PRIORITY))
        for kind, _, length in _frames(bytes(tap.kept[Side.RESPONSE])):
            if kind in (DATA, HEADERS):
                sent += FRAME + length
                content += length * (kind == DATA)
        assert sums[tap.port] == (asked, sent, content)


LINE: Final = {
    "connection": "1",
    "sequence": "1",
    "port": "40000",
    "server_port": "80",
    "method": "POST",
    "uri": "/a?b",
    "protocol": "HTTP/1.1",
    "status": "200",
    "request_length": "150",
    "bytes_sent": "1100",
    "body_bytes_sent": "1000",
    "response_length": "1000",
    "response_coding": "",
    "content_length": "50",
    "coding": "",
    "expect": "",
    "received": "50",
    "upstream_length": "1000",
    "completion": "OK",
}
ROW: Final[dict[str, Any]] = {
    "role": "server",
    "local_port": 80,
    "remote_port": 40000,
    "start_ns": 1,
    "end_ns": 2,
    "method": "POST",
    "path": "/a",
    "version": 11,
    "status": 200,
    "outcome": 0,
    "grpc_status": NOT_GRPC,
    "request_header_size": 100,
    "request_body_size": 50,
    "response_header_size": 100,
    "response_body_size": 1000,
}


def _problems(rows: list[dict[str, Any]], *lines: dict[str, str]) -> list[str]:
    return truth.compare(rows, truth.from_nginx(lines, 80), "server", 80)


def test_the_same_is_the_same() -> None:
    assert _problems([ROW] * 3, *[LINE] * 3) == []


@pytest.mark.parametrize(
    "difference",
    [
        {"method": "PUT"},
        {"path": "/a?b"},
        {"version": 10},
        {"status": 201},
        {"outcome": 1},
        {"grpc_status": 0},
        {"request_header_size": 101},
        {"request_body_size": 49},
        {"response_header_size": None},
        {"response_body_size": 1},
        {"remote_port": 40001},
    ],
)
def test_any_other_column_is_told(difference: dict[str, Any]) -> None:
    assert _problems([ROW, ROW | difference], LINE, LINE)


def test_rows_are_matched_one_to_one() -> None:
    assert len(_problems([ROW], LINE, LINE)) == 1
    assert len(_problems([ROW, ROW], LINE)) == 1
    assert _problems([], LINE)
    assert _problems([ROW])
    assert _problems([ROW | {"role": "client"}], LINE)


def test_a_silent_line_demands_an_unanswered_row() -> None:
    silent = LINE | {"status": "499", "bytes_sent": "0", "body_bytes_sent": "0", "completion": ""}
    unanswered = ROW | {
        "status": 0,
        "outcome": int(Outcome.UNANSWERED),
        "response_header_size": 0,
        "response_body_size": 0,
    }
    assert _problems([unanswered], silent) == []
    assert _problems([ROW], silent)
    assert _problems([unanswered | {"status": 499}], silent)


def test_a_cut_response_keeps_its_status() -> None:
    cut = LINE | {"completion": "", "bytes_sent": "600", "body_bytes_sent": "500"}
    row = ROW | {"outcome": int(Outcome.ABORTED), "response_body_size": 500}
    assert _problems([row], cut) == []
    assert _problems([row | {"response_body_size": 499}], cut)
    assert _problems([ROW], cut)


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a?b", "/a"), ("/a#b", "/a"), ("http://x.y/a/b?c", "/a/b"), ("http://x", "/"), ("*", "*")],
)
def test_a_path_has_no_query(target: str, path: str) -> None:
    assert truth.path_of(target) == path
