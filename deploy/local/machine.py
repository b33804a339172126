"""All parts of one machine, wired: what ``podwire local`` and the demo run."""

from __future__ import annotations

import fcntl
import logging
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

from deploy.local.broker import broker_spec
from deploy.local.figures import Figures
from deploy.local.lag import Reader, behind
from deploy.local.part import Part, PartFailed, PartSpec
from deploy.local.ports import wait_open
from deploy.local.settings import (
    LOCK_NAME,
    Layout,
    LocalOptions,
    part_environment,
    sections,
    write_config,
)
from deploy.local.supervisor import Supervisor
from deploy.schema import apply_topics
from schemas.clock import SystemClock
from schemas.config import KafkaConfig
from schemas.errors import ConfigError, TransportError
from schemas.topics import ACCESS_LOG, EVENTS, METRICS
from sink.config import SinkConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Machine", "lock_data", "podwire_command"]

STREAMS_GROUP: Final = "podwire-streams"
"""`streams.app.APP_ID`; written again because importing Faust takes a second."""
KAFKA_TIMEOUT_S: Final = 10.0
BROKER_START_S: Final = 10.0
DRAIN_TIMEOUT_S: Final = 45.0
DRAIN_INTERVAL_S: Final = 0.2
PROGRESS_INTERVAL_S: Final = 0.1

log = logging.getLogger(__name__)


def podwire_command(*arguments: str) -> list[str]:
    """Return the command that runs a part with this very installation.

    ``-P`` keeps the current directory, which may hold anything, off the import path.
    """
    return [sys.executable, "-P", "-m", "deploy.cli", *arguments]


class Machine:
    """Broker, kube publisher, collector, workers and sink as child processes.

    Args:
        options: What the user asked for.

    Raises:
        ConfigError: If ports, directories or the embedded broker are not usable, or another run
            uses the data directory.
    """

    def __init__(self, options: LocalOptions) -> None:
        self.options = options
        self.layout = Layout.choose(options)
        self._lock = lock_data(self.layout.data)
        self._clock = SystemClock()
        self.figures = Figures(self.layout.telemetry)
        self.broker_deaths: list[str] = []
        self._configure()
        self.supervisor = Supervisor(
            self._parts(), reset=None if options.broker else self._reset_broker
        )

    def start(self) -> None:
        """Start everything.

        Raises:
            PartFailed: If the broker does not come up.
            TransportError: If the given broker cannot be reached.
            ConfigError: If its topics do not fit.
        """
        broker = self.supervisor.parts.get("broker")
        if broker is not None:
            broker.start()
            self._wait_broker()
        self._apply_topics()
        self.supervisor.start()
        self.figures.start()

    def check(self) -> None:
        """Look after the parts once.

        Raises:
            PartFailed: If one of them cannot be kept alive.
        """
        self.supervisor.check()

    @property
    def is_done(self) -> bool:
        """Whether a replay has been sent completely."""
        return self.supervisor.parts["collector"].state == "done"

    def is_watching(self) -> bool:
        """Whether the collector has published its first batch."""
        return self.figures.batches > 0

    def stop(self, progress: Callable[[str], None] = lambda _: None) -> list[str]:
        """End everything in order, so that what was seen is stored.

        Args:
            progress: Told what is going on.

        Returns:
            What did not go well; empty if all did.
        """
        progress("last batch")
        problems = self.supervisor.stop(lambda: self._drain(progress))
        self.figures.stop()
        self._lock.close()
        return problems

    def kill(self) -> None:
        """End everything at once."""
        self.supervisor.kill()
        self.figures.stop()
        self._lock.close()

    def _configure(self) -> None:
        epoch = "" if self.options.broker else f"{time.time_ns() // 1_000_000:x}"
        content = sections(self.options, self.layout, epoch)
        write_config(self.layout, content)
        self._environment = part_environment(content)
        self._kafka = KafkaConfig.load(content, environment=self._environment)
        self._sink = SinkConfig.load(content, environment=self._environment)

    def _parts(self) -> list[Part]:
        options, layout = self.options, self.layout
        specs: list[PartSpec] = []
        if not options.broker:
            specs.append(broker_spec(layout.broker_port, layout.log_file("broker")))
        if options.kube is not None:
            specs.append(self._spec("kube", "--from-file", str(options.kube.resolve())))
        specs += [self._spec("sink"), self._spec("streams")]
        more: list[str] = []
        if options.record is not None:
            more += ["--record", str(options.record.resolve())]
        if options.replay is not None:
            more += ["--replay", str(options.replay.resolve())]
            more += ["--replay-pace", options.replay_pace]
        specs.append(self._spec("collector", *more, finishes=options.replay is not None))
        return [Part(spec, self._clock) for spec in specs]

    def _spec(self, part: str, *more: str, finishes: bool = False) -> PartSpec:
        return PartSpec(
            part,
            podwire_command(part, "--config", str(self.layout.config_file), *more),
            self.layout.log_file(part),
            self._environment,
            finishes=finishes,
            stop_timeout_s=30.0,
        )

    def _wait_broker(self) -> None:
        if not wait_open(self.layout.broker_port, BROKER_START_S):
            raise PartFailed("broker", "does not answer", self.layout.log_file("broker"))

    def _apply_topics(self) -> None:
        try:
            apply_topics(self._kafka, KAFKA_TIMEOUT_S)
        except TransportError as error:
            if self.options.broker:
                raise ConfigError("--broker", str(error)) from error
            raise

    def _reset_broker(self) -> None:
        # Whatever had not reached SQL yet was only in the broker's memory.
        lost = self.figures.unstored
        self.figures.lose("broker_memory", lost)
        text = (
            f"the broker died and its memory with it: about {lost} events of the minutes that were"
            " not stored yet are lost"
        )
        log.error("%s", text)
        self.broker_deaths.append(text)
        self._configure()
        self._wait_broker()
        self._apply_topics()

    def _drain(self, progress: Callable[[str], None]) -> bool:
        readers = (
            Reader("streams", STREAMS_GROUP, EVENTS.name),
            Reader("sink", self._sink.group, METRICS.name),
            *(
                [Reader("access log", self._sink.access_log_group, ACCESS_LOG.name)]
                * self._sink.access_log
            ),
        )
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        for reader in readers:
            while True:
                try:
                    self.supervisor.check()
                    left = behind(self._kafka, reader)
                    if left == 0:
                        break
                    state = f"{reader.name}: {left} messages left"
                except TransportError as error:
                    state = str(error)
                except PartFailed as error:
                    log.error("%s", error)
                    return False
                progress(state)
                if time.monotonic() > deadline:
                    log.error("%s", state)
                    return False
                time.sleep(DRAIN_INTERVAL_S)
        self.figures.refresh()
        return True


def lock_data(data: Path) -> IO[Any]:
    """Take a data directory until the returned file is closed.

    Raises:
        ConfigError: If another process has it.
    """
    file = (data / LOCK_NAME).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError("--data", f"another podwire is running with {data}") from error
    return file
