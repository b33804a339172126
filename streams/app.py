"""The Faust app: settings, one thin agent, and the worker around it.

Nothing here computes. The agent hands raw messages to `Pipeline`; an error that reaches it ends the
process with a failure, because a body that Faust restarts would look like a healthy worker that
skips.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any, cast

import faust
from aiokafka.errors import KafkaError
from faust.auth import SASLCredentials, SSLCredentials
from faust.types import TP
from yarl import URL

from schemas.clock import SystemClock
from schemas.entities import DeadLetter, encode_dead_letter
from schemas.errors import FatalError, PodwireError, TransportError
from schemas.monitoring import ScopeFile
from schemas.telemetry import Health, counter, served
from schemas.topics import ACCESS_LOG, DEAD_LETTER, ENTITIES, EVENTS, MAX_MESSAGE_BYTES, METRICS
from streams.broker import BrokerHistory, ensure_topics, ssl_context
from streams.consumer import FloorTransport
from streams.directory import Directory
from streams.metadata import MetadataCache
from streams.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Sequence

    from schemas.config import KafkaConfig
    from streams.config import StreamsConfig
    from streams.consumer import FloorConsumer

__all__ = ["APP_ID", "Worker", "create_app"]

logger = logging.getLogger(__name__)

APP_ID = "podwire-streams"
"""The consumer group."""

_LARGEST_REQUEST = MAX_MESSAGE_BYTES + 64 * 1024
_TICK_S = 0.2
_STOP_TIMEOUT_S = 4.0


class _App(faust.App):
    mundane_level = "debug"

    def _create_directories(self) -> None:
        # No tables, so no data directory in the current directory either.
        pass


def create_app(kafka: KafkaConfig, settings: StreamsConfig) -> faust.App:
    """Return the Faust app without agents; the defaults that hurt are turned off."""
    servers = ";".join(part.strip() for part in kafka.bootstrap_servers.split(","))
    options: dict[str, Any] = {}
    context = ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["broker_credentials"] = SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    elif context is not None:
        options["broker_credentials"] = SSLCredentials(context=context)
    if settings.instance_id:
        options["consumer_group_instance_id"] = settings.instance_id
    return _App(
        APP_ID,
        broker=f"kafka://{servers}",
        broker_commit_interval=0.5,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=max(settings.session_timeout_s / 5, 0.5),
        broker_request_timeout=40.0,
        broker_rebalance_timeout=30.0,
        broker_max_poll_records=64,
        broker_commit_livelock_soft_timeout=3600.0,  # the floor may rest while nothing closes
        stream_processing_timeout=3600.0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=_LARGEST_REQUEST,
        stream_buffer_maxsize=16,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        producer_acks=-1,
        producer_compression_type="lz4",
        producer_linger=0.005,
        producer_max_batch_size=256 * 1024,
        producer_max_request_size=_LARGEST_REQUEST,
        producer_request_timeout=120.0,
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        worker_redirect_stdouts=False,
        **options,
    )


class _KafkaOutput:
    # Results to the topics, through the app's own producer.
    def __init__(self, app: faust.App) -> None:
        self._app = app

    async def owns(self, partition: int, floor: int) -> bool:
        place = TP(EVENTS.name, partition)
        if place not in self._app.consumer.assignment():
            return False
        # The coordinator refuses a member of an older generation.
        return bool(await cast("FloorConsumer", self._app.consumer).commit_now({place: floor}))

    async def send_blocks(self, partition: int, messages: Sequence[bytes]) -> None:
        await self._send([(METRICS.name, partition, None, message) for message in messages])

    async def send_entities(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        await self._send([(ENTITIES.name, None, key, value) for key, value in messages])

    async def send_dead_letter(self, key: bytes, value: bytes) -> None:
        await self._send([(DEAD_LETTER.name, None, key, value)])

    async def begin_access_log(self, key: bytes, messages: Sequence[bytes]) -> Awaitable[None]:
        return await self._begin([(ACCESS_LOG.name, None, key, value) for value in messages])

    async def _send(self, messages: list[tuple[str, int | None, bytes | None, bytes]]) -> None:
        await (await self._begin(messages))

    async def _begin(
        self, messages: list[tuple[str, int | None, bytes | None, bytes]]
    ) -> Awaitable[None]:
        # To the client's buffers; what it returns is done when the broker has it all.
        producer = self._app.producer
        try:
            sent = [
                await producer.send(topic, key, value, partition, None, None)
                for topic, partition, key, value in messages
            ]
        except Exception as error:
            raise _not_written(messages[0][0], error) from error
        return self._taken(messages[0][0], sent)

    async def _taken(self, topic: str, sent: list[Awaitable[Any]]) -> None:
        try:
            await asyncio.gather(*sent)
        except Exception as error:
            raise _not_written(topic, error) from error


def _not_written(topic: str, error: Exception) -> TransportError:
    # What the broker has of it is unknown; a new process reads it back from the topic.
    return TransportError(f"{topic} was not written: {error!r}")


class Worker:
    """One worker process: starts everything, ends on a signal or on the first failure."""

    def __init__(
        self, kafka: KafkaConfig, settings: StreamsConfig, scope: ScopeFile | None = None
    ) -> None:
        self._kafka = kafka
        self._settings = settings
        self._scope = scope or ScopeFile(None, settings.SECTION)
        self._failure: BaseException | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Work until a signal.

        Raises:
            PodwireError: What made going on impossible.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        if self._scope.path is not None:
            loop.add_signal_handler(signal.SIGHUP, self._scope.reload)
        health = Health()
        with served(self._settings, health):
            await self._work(health)
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BaseException) -> None:
        """End the process because of this error; the first one counts."""
        if self._failure is None:
            self._failure = error
            if not isinstance(error, PodwireError):
                logger.error("unexpected error, stopping", exc_info=error)
                counter("podwire_errors_total").labels("streams", type(error).__name__).inc()
                self._failure = FatalError(f"unexpected {type(error).__name__}: {error}")
                self._failure.__cause__ = error
        self._ended.set()

    async def _work(self, health: Health) -> None:
        partitions = await ensure_topics(self._kafka)
        directory = Directory(int(self._settings.address_tolerance_s * 1000))
        app = create_app(self._kafka, self._settings)
        output = _KafkaOutput(app)
        pipeline = Pipeline(
            self._settings,
            directory,
            output,
            BrokerHistory(self._kafka),
            SystemClock(),
            health,
            self._scope,
        )
        letters: asyncio.Queue[DeadLetter] = asyncio.Queue()
        metadata = MetadataCache(self._kafka, directory, letters.put_nowait)
        self._install(app, pipeline, partitions)
        try:
            if not await self._unless_ended(
                metadata.start(self._settings.metadata_start_timeout_s)
            ):
                return
            await self._serve(app, pipeline, metadata, output, letters)
        finally:
            await metadata.stop()

    async def _unless_ended(self, work: Coroutine[Any, Any, Any]) -> bool:
        # Whether the work was finished before the process was told to end.
        task = asyncio.create_task(work)
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not task.done():
            task.cancel()
            return False
        await task
        return True

    def _install(self, app: faust.App, pipeline: Pipeline, partitions: int) -> None:
        urls = [URL(text) for text in map(str, app.conf.broker_consumer)]
        app.transport = app.producer_transport = FloorTransport(
            urls,
            app,
            lambda topic, number: pipeline.floor(number) if topic == EVENTS.name else None,
            idempotent=self._settings.idempotent_producer,
        )
        events = app.topic(EVENTS.name, value_type=bytes, key_type=bytes, partitions=partitions)

        @app.agent(events, name="minutes")
        async def minutes(stream: Any) -> None:
            async for event in stream.events():
                message = event.message
                try:
                    if message.generation_id != app.consumer_generation_id or app.rebalancing:
                        continue  # from before a rebalance: it will be read again
                    await pipeline.receive(
                        message.partition,
                        message.offset,
                        message.key or b"",
                        message.value or b"",
                        message.timestamp,
                        cast("FloorConsumer", app.consumer).committed(message.tp),
                    )
                except Exception as error:
                    self.fail(error)
                    await asyncio.Event().wait()  # until the worker stops: nothing is skipped

        @app.on_partitions_revoked.connect  # type: ignore[arg-type]
        async def revoked(_: Any, places: set[TP], *__: Any, **___: Any) -> None:
            await pipeline.revoke(p.partition for p in places if p.topic == EVENTS.name)

    async def _serve(
        self,
        app: faust.App,
        pipeline: Pipeline,
        metadata: MetadataCache,
        output: _KafkaOutput,
        letters: asyncio.Queue[DeadLetter],
    ) -> None:
        try:
            # Waits for the group, for as long as the broker is away.
            if not await self._unless_ended(app.start()):
                return
            logger.info("stream worker runs, group %s", APP_ID)
            while not self._ended.is_set():
                self._scope.poll()
                await pipeline.tick()
                while not letters.empty():
                    letter = letters.get_nowait()
                    await output.send_dead_letter(letter.topic.encode(), encode_dead_letter(letter))
                    counter("podwire_dead_letters_total").labels("streams", letter.topic).inc()
                if app.crashed:
                    self.fail(app.crash_reason or FatalError("the consumer crashed"))
                if metadata.failure is not None:
                    self.fail(metadata.failure)
                try:
                    await asyncio.wait_for(self._ended.wait(), _TICK_S)
                except TimeoutError:
                    continue
        except KafkaError as error:
            self.fail(TransportError(f"{self._kafka.bootstrap_servers}: {error!r}"))
        except Exception as error:
            self.fail(error)
        finally:
            stopped = asyncio.create_task(metadata.stop())  # both wait for a broker that is away
            try:
                await asyncio.wait_for(app.stop(), _STOP_TIMEOUT_S)
            except TimeoutError:
                logger.warning("the consumer group was not left in time")
            await stopped
