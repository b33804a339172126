from __future__ import annotations

import random

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as decode_by_hpack
from hypothesis import given
from hypothesis import strategies as st

from collector.protocols.hpack import HIDDEN, STATIC_TABLE, Decoder, Field
from collector.protocols.huffman import decode_huffman

NAMES = ("a", "b", ":path", "content-type", "x-request-id", "")
VALUES = ("", "1", "v" * 50, "/a/b?c", "é\x00ÿ", "w" * 5_000)
# Numbers in NAMES and VALUES: some are long, and what hypothesis draws it also writes out.
FIELDS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6)

# RFC 7541 appendix C.3 (C.4 is the same with Huffman code), blocks and the table after each.
REQUESTS = (
    (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "www.example.com"},
    ),
    (
        "828684be58086e6f2d6361636865",
        "828684be5886a8eb10649cbf",
        {
            ":method": "GET",
            ":scheme": "http",
            ":path": "/",
            ":authority": "www.example.com",
            "cache-control": "no-cache",
        },
    ),
    (
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        {
            ":method": "GET",
            ":scheme": "https",
            ":path": "/index.html",
            ":authority": "www.example.com",
            "custom-key": "custom-value",
        },
    ),
)

# RFC 7541 appendix C.5 and C.6: a table of 256 octets, so that entries are evicted.
RESPONSES = (
    (
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f"
        "0b97c8e9ae82ae43d3",
        [
            (":status", "302"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("location", "https://www.example.com"),
        ],
    ),
    (
        "4803333037c1c0bf",
        "4883640effc1c0bf",
        [
            (":status", "307"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("location", "https://www.example.com"),
        ],
    ),
    (
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
        "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
        "657273696f6e3d31",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335df"
        "dfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        [
            (":status", "200"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            ("location", "https://www.example.com"),
            ("content-encoding", "gzip"),
            ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
        ],
    ),
)


def decode(decoder: Decoder, block: bytes | str) -> list[Field]:
    fields, is_whole = decoder.decode(bytes.fromhex(block) if isinstance(block, str) else block)
    assert is_whole
    return fields


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", ("custom-key", "custom-header")),
        ("040c2f73616d706c652f70617468", (":path", "/sample/path")),
        ("100870617373776f726406736563726574", ("password", "secret")),
        ("82", (":method", "GET")),
    ],
)
def test_representations_of_appendix_c2(block: str, field: Field) -> None:
    assert decode(Decoder(), block) == [field]


@pytest.mark.parametrize("huffman", [0, 1])
def test_requests_of_appendix_c3_and_c4(huffman: int) -> None:
    decoder = Decoder()
    for example in REQUESTS:
        assert decode(decoder, example[huffman]) == list(example[2].items())


@pytest.mark.parametrize("huffman", [0, 1])
def test_responses_of_appendix_c5_and_c6(huffman: int) -> None:
    decoder = Decoder()
    decode(decoder, "3fe101")  # 256
    for example in RESPONSES:
        assert decode(decoder, example[huffman]) == example[2]
    # location was evicted with what stood in front of it
    assert decoder.decode(b"\xc1") == ([], False)


@pytest.mark.parametrize(
    ("block", "size"), [("2a", 10), ("3f9a0a", 31 + 0x1A + (0x0A << 7)), ("20", 0)]
)
def test_size_updates(block: str, size: int) -> None:
    decoder = Decoder()
    whole = decoder.decode(bytes.fromhex(block))[1]
    assert whole is (size <= 4_096)


def test_static_table_is_that_of_the_oracle() -> None:
    table = hpack.table.HeaderTable.STATIC_TABLE
    assert [(name.encode(), value.encode()) for name, value in STATIC_TABLE] == list(table)


@given(st.binary(max_size=40))
def test_huffman_there_and_back(data: bytes) -> None:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(data)
    assert decode_huffman(coded) == data.decode("latin-1")


@given(st.binary(max_size=12))
def test_huffman_of_any_bytes_is_what_the_oracle_says(data: bytes) -> None:
    try:
        expected = decode_by_hpack(data).decode("latin-1")
    except hpack.HPACKDecodingError:
        expected = None
    assert decode_huffman(data) == expected


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x1f\xff", b"\x18"])
def test_huffman_refuses_its_end_symbol_and_wrong_padding(data: bytes) -> None:
    assert decode_huffman(data) is None


@given(st.lists(st.tuples(FIELDS, st.booleans(), st.sampled_from((None, 0, 60, 500, 4_096)))))
def test_decoder_follows_an_encoder(
    blocks: list[tuple[list[tuple[int, int]], bool, int | None]],
) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder()
    for numbers, huffman, table_size in blocks:
        fields = [(NAMES[name], VALUES[value]) for name, value in numbers]
        if table_size is not None:
            encoder.header_table_size = table_size
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        assert decode(decoder, encoder.encode(raw, huffman=huffman)) == fields


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_any_bytes_mean_what_the_oracle_says(blocks: list[bytes]) -> None:
    oracle = hpack.Decoder()
    decoder = Decoder()
    for block in blocks:
        fields, is_whole = decoder.decode(block)
        try:
            expected = oracle.decode(block, raw=True)
        except hpack.HPACKError:
            # It also demands size updates and forbids what an observer may let pass.
            return
        assert is_whole
        assert [tuple(str(part, "latin-1") for part in item) for item in expected] == fields


def test_malformed_block_gives_what_was_decoded() -> None:
    assert Decoder().decode(b"\x82\x80\x84") == ([(":method", "GET")], False)
    assert Decoder().decode(b"\x82\x00\x05ab") == ([(":method", "GET")], False)
    assert Decoder().decode(b"\x82\x20") == ([(":method", "GET")], False)
    assert Decoder().decode(b"\xff" * 20) == ([], False)


def test_generation_changes_with_the_table_only() -> None:
    decoder = Decoder()
    first = decoder.generation
    decode(decoder, b"\x82\x00\x01a\x01b")
    assert decoder.generation == first
    decode(decoder, b"\x40\x01a\x01b")
    assert decoder.generation != first


def test_joined_decoder_knows_what_came_later() -> None:
    decoder = Decoder(is_joined=True)
    assert decode(decoder, b"\x82\xbe") == [(":method", "GET"), HIDDEN]
    # a new value for a name in an entry that is not known, put into the table
    assert decode(decoder, b"\x7e\x01v") == [(None, "v")]
    assert decode(decoder, b"\x40\x01n\x01w\xbe\xbf\xc0") == [
        *[("n", "w"), ("n", "w")],
        *[(None, "v"), HIDDEN],
    ]


def test_joined_decoder_refuses_what_no_table_holds() -> None:
    assert Decoder(is_joined=True).decode(b"\xff\xff\xff\x7f")[1] is False


def test_joined_decoder_knows_an_emptied_table() -> None:
    decoder = Decoder(is_joined=True)
    assert decode(decoder, b"\x20\x3f\xe1\x1f\x82") == [(":method", "GET")]
    assert decoder.decode(b"\xbe") == ([], False)


@given(st.integers(0, 30), st.integers(0, 2**32))
def test_joined_decoder_is_never_wrong(joined_at: int, seed: int) -> None:
    """Whatever it says is so, and only entries that are older than it are hidden."""
    choose = random.Random(seed)
    encoder = hpack.Encoder()
    if choose.random() < 0.5:
        encoder.header_table_size = choose.choice((100, 1_000))
    decoder = Decoder(is_joined=True)
    known: set[tuple[str, str]] = set()
    for number in range(40):
        fields = [(choose.choice("abcd"), str(choose.randrange(12))) for _ in range(4)]
        if choose.random() < 0.05:
            encoder.header_table_size = choose.choice((0, 100, 1_000))
        block = encoder.encode([(n.encode(), v.encode()) for n, v in fields])
        if number < joined_at:
            continue
        for found, field in zip(decode(decoder, block), fields, strict=True):
            assert found[0] in (None, field[0])
            assert found[1] in (None, field[1])
            if field in known:
                assert found == field
            if found == field:
                known.add(field)


def test_table_is_bounded_however_large_it_was_announced() -> None:
    decoder = Decoder()
    decoder.allow(2**32 - 1)
    decode(decoder, b"\x3f\xff\xff\xff\x7f")
    for number in range(3_000):
        value = f"{number:0100}".encode()
        decode(decoder, b"\x40\x01a" + bytes((len(value),)) + value)
    assert len(decoder._entries) < 600
    assert decode(decoder, b"\xbe") == [("a", f"{2_999:0100}")]
    assert decode(decoder, b"\xff\xe0\x07") == [HIDDEN]
