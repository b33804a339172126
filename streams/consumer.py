"""Faust's Kafka transport with a floor under its commits.

Faust commits what was acknowledged. Here a message is acknowledged as soon as its contribution is
added up in memory, so what may be committed is decided by the minutes that are stored: the floor.
Everything else of Faust's transport stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from faust.transport.drivers import aiokafka as driver

from schemas.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from faust.types import TP, AppT

__all__ = ["FloorConsumer", "FloorTransport", "IdempotentProducer"]


class FloorConsumer(driver.Consumer):
    """Commits the floor of each partition instead of the last acknowledged offset."""

    mundane_level = "debug"

    def committed(self, tp: TP) -> int | None:
        """Where the group's reading of the partition had to begin; None: never committed."""
        offset = self._committed_offset.get(tp)
        return offset if offset is not None and offset >= 0 else None

    async def commit_now(self, offsets: Mapping[TP, int]) -> bool:
        """Commit these offsets; whether the group took them."""
        return bool(await self._commit(offsets))

    def _new_offset(self, tp: TP) -> int | None:
        # Faust's own rule goes by runs of acknowledged offsets that begin at the committed one;
        # with a floor far behind them it would wait for ever (`min(acked) - committed > 1`). The
        # floor is never beyond what was processed, so nothing of that bookkeeping is needed, and
        # dropping it keeps its memory bounded.
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        self._gap[tp].clear()
        return cast("FloorTransport", self.transport).floor(tp.topic, tp.partition)

    def _to_message(self, tp: TP, record: Any) -> Any:
        read = self._read_offset.get(tp)
        if read is not None and record.offset < read:
            # The topic begins anew (a broker lost its data). Faust would drop these messages.
            raise FatalError(
                f"{tp.topic} partition {tp.partition} went back from offset {read}"
                f" to {record.offset}"
            )
        return super()._to_message(tp, record)


class IdempotentProducer(driver.Producer):
    """Keeps order and writes once, whatever has to be sent again, if the broker can do that."""

    mundane_level = "debug"

    def _settings_extra(self) -> Mapping[str, Any]:
        idempotent = cast("FloorTransport", self.transport).idempotent
        return {"acks": "all", "enable_idempotence": idempotent}


class FloorTransport(driver.Transport):
    """The transport to install as ``app.transport``.

    Args:
        floor: Topic and partition to the offset that may be committed; None: leave it alone.
        idempotent: Whether the broker recognises what is sent again.
    """

    Consumer = FloorConsumer
    Producer = IdempotentProducer

    def __init__(
        self,
        url: Any,
        app: AppT,
        floor: Callable[[str, int], int | None],
        *,
        idempotent: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(url, app, **options)
        self.floor = floor
        self.idempotent = idempotent
