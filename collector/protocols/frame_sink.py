"""What the frames of HTTP/2 mean for calls, as `FrameReader` tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.protocols.calls import Side

__all__ = ["Block", "FrameSink"]


class Block(NamedTuple):
    """A field block, put together from its HEADERS or PUSH_PROMISE and CONTINUATION frames.

    Attributes:
        stream_id: Of the frames.
        promised_id: Stream that a PUSH_PROMISE reserves, else 0.
        ends_stream: Whether nothing more comes on the stream from this side.
        data: The octets; None where there were too many to keep.
        size: Their number, without frame headers and padding.
        start_ns: ``start_ns`` of the piece with the first byte of the first frame.
        first_ns: ``end_ns`` of that piece.
        end_ns: ``end_ns`` of the piece with the last byte of the last frame.
    """

    stream_id: int
    promised_id: int
    ends_stream: bool
    data: bytes | None
    size: int
    start_ns: int
    first_ns: int
    end_ns: int


class FrameSink(Protocol):
    """What takes the frames of both sides."""

    def on_preface(self) -> None:
        """A client that the reader had joined begins only now."""

    def on_block(self, side: Side, block: Block) -> bool:
        """Take a field block; False if it cannot be one."""

    def on_data(self, side: Side, stream_id: int, size: int) -> None:
        """Take note of octets of a body."""

    def on_end(self, side: Side, stream_id: int, end_ns: int) -> None:
        """A DATA frame ended its stream."""

    def on_reset(self, side: Side, stream_id: int, end_ns: int) -> None:
        """RST_STREAM."""

    def on_settings(self, side: Side, settings: Sequence[tuple[int, int]]) -> None:
        """SETTINGS, with what they announce."""

    def on_goaway(self, side: Side, last_stream_id: int, end_ns: int) -> None:
        """GOAWAY."""

    def on_loss(self, side: Side) -> None:
        """Frames of this side went by unread."""
