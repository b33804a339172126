"""``podwire local``: watch this machine with every real part until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from deploy.local.machine import Machine
from deploy.local.settings import DEFAULT_HTTP_PORT, LocalOptions
from deploy.local.status import StatusLine, count, plural, program
from schemas.config import load_file
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["HELP", "StopSignal", "add_arguments", "run"]

HELP = "Run every part on this machine"
DESCRIPTION = """\
Watch this machine: an embedded Kafka-compatible broker, the collector on the live kernel, the
stream worker, and the sink with an embedded ClickHouse. Ctrl-C stores everything that was seen,
then ends; a second Ctrl-C ends at once."""
EPILOG = """\
examples:
  podwire local                                     until Ctrl-C
  podwire local --kube cluster.json --duration 300  with names of pods and services
  podwire local --replay demo.recording             recorded events instead of the kernel
  curl 'http://127.0.0.1:8123/?database=podwire&query=SHOW+TABLES'
                                                    SQL while it runs
  podwire sql --data podwire.data "SHOW TABLES"     SQL at any time

cluster.json is what `kubectl get pods,services,endpointslices,nodes -A -o json` prints."""

TICK_S: Final = 0.1
DEFAULT_DATA: Final = Path("podwire.data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, metavar="DIR",
        help="where everything is kept [podwire.data]",
    )  # fmt: skip
    parser.add_argument(
        "--kube", type=Path, metavar="FILE", help="Kubernetes objects, as kubectl prints them"
    )
    parser.add_argument(
        "--duration", type=seconds, metavar="S", help="end after so many seconds [Ctrl-C]"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--record", type=Path, metavar="FILE", help="also write the events to this file"
    )
    source.add_argument(
        "--replay", type=Path, metavar="FILE", help="events of this file instead of the kernel's"
    )
    parser.add_argument(
        "--replay-pace", choices=("recorded", "fast"), default="recorded",
        help="as quickly as it was, or as quickly as possible [recorded]",
    )  # fmt: skip
    parser.add_argument(
        "--http-port", type=port_number, default=DEFAULT_HTTP_PORT, metavar="P",
        help="port of the SQL endpoint on loopback, 0 for any [8123]",
    )  # fmt: skip
    parser.add_argument(
        "--broker", metavar="HOST:PORT",
        help="a durable Kafka instead of the embedded broker, whose records live in memory",
    )  # fmt: skip


class StopSignal:
    """Ctrl-C and SIGTERM as a flag; the second one interrupts."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


def run(arguments: argparse.Namespace) -> int:
    """Run until told to stop; 0 if everything that was seen is stored."""
    for option in ("kube", "replay"):
        path = getattr(arguments, option)
        if path is not None and not path.is_file():
            raise ConfigError(f"--{option}", f"{path} is no file")
    console = Console(highlight=False)
    machine = Machine(
        LocalOptions(
            data=arguments.data,
            kube=arguments.kube,
            duration_s=arguments.duration,
            record=arguments.record,
            replay=arguments.replay,
            replay_pace=arguments.replay_pace,
            http_port=arguments.http_port,
            broker=arguments.broker,
            config=arguments.config,
            base=load_file(arguments.config) if arguments.config else None,
        )
    )
    stop = StopSignal()
    layout = machine.layout
    console.print(f"[bold]podwire local[/]  data in {layout.data}, logs in {layout.data}/logs")
    console.print(
        f"  SQL  curl 'http://127.0.0.1:{layout.http_port}/?database=podwire&query=SHOW+TABLES'"
    )
    try:
        machine.start()
        with StatusLine(console, machine.figures, machine.supervisor.parts) as line:
            _watch(machine, line, stop, arguments.duration)
            line.say("storing what was seen ...")
            problems = machine.stop(lambda text: line.say(f"storing what was seen ... {text}"))
    except BaseException:
        machine.kill()
        raise
    return _report(console, machine, problems)


def _watch(machine: Machine, line: StatusLine, stop: StopSignal, duration: float | None) -> None:
    end = time.monotonic() + duration if duration is not None else None
    while not stop.is_set and not machine.is_done:
        if end is not None and time.monotonic() >= end:
            return
        machine.check()
        line.update()
        time.sleep(TICK_S)


def _report(console: Console, machine: Machine, problems: list[str]) -> int:
    figures, data = machine.figures, machine.layout.data
    console.print(
        f"{count(figures.counted)} events in {plural(figures.minutes, 'block')} of minutes "
        f"stored, {count(sum(figures.losses.values()))} lost"
    )
    for reason, number in sorted(figures.losses.items()):
        console.print(f"  {count(number)} lost: {reason}", style="red")
    for problem in (*machine.broker_deaths, *problems):
        console.print(problem, style="red")
    console.print(f"data in {data}; ask it:")
    console.print(f'  {program()} sql --data {data} "SHOW TABLES"', soft_wrap=True)
    return 1 if problems or machine.broker_deaths else 0


# argparse names these in its messages: "invalid seconds value".
def seconds(text: str) -> float:
    """Return a duration, for argparse."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def port_number(text: str) -> int:
    """Return a port or 0, for argparse."""
    value = int(text)
    if not 0 <= value <= 65_535:
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return value
