"""``podwire demo``: a small cluster on this machine, its traffic, and what podwire saw of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.demo.cluster import Cluster
from deploy.demo.recording import reduce_recording
from deploy.demo.shop import WORKLOADS, AccessLog, Shop
from deploy.demo.view import (
    endpoint_table,
    load_endpoints,
    load_packets,
    load_relations,
    load_served,
    load_waits,
    packet_table,
    relation_table,
    served_table,
    topology,
    truth_table,
    wait_table,
)
from deploy.local.machine import Machine, lock_data
from deploy.local.part import PartFailed
from deploy.local.settings import LocalOptions
from deploy.local.status import count, plural, program
from deploy.sql import Database
from schemas.errors import ConfigError, UnsupportedFeature

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Build a small cluster here and show its traffic"
DESCRIPTION = """\
Build a small cluster on this machine out of network namespaces and cgroups, let nginx, node.js,
Python, OpenSSL, curl and h2load talk in it, and show what podwire saw from the kernel. Everything
is removed afterwards, except the data. Without the rights for eBPF (root) a recording is shown."""
EPILOG = """\
examples:
  sudo podwire demo                the live kernel, under a minute
  podwire demo --replay            the recording that ships with podwire
  podwire sql --data podwire-demo.data "SHOW TABLES"   afterwards"""

TAG: Final = "demo"
NODE: Final = "demo-node"
DEFAULT_DATA: Final = Path("podwire-demo.data")
DEFAULT_SECONDS: Final = 30
WATCH_TIMEOUT_S: Final = 30.0
TRAFFIC_GRACE_S: Final = 30.0
TICK_S: Final = 0.1
EXAMPLE: Final = "SELECT * FROM service_relation_metrics LIMIT 1 FORMAT Vertical"
RECORDING: Final = "demo.recording.gz"
KUBE_FILE: Final = "demo.kube.json"
MARKER: Final = "podwire-demo"
"""Tells that a demo made the directory; what `podwire local` stored is never removed."""
TRUTH_FILE: Final = "demo.truth.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, metavar="DIR",
        help="where the data stays; what an earlier demo left there is removed [podwire-demo.data]",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=int, default=DEFAULT_SECONDS, metavar="S",
        help="how long the traffic lasts [30]",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--replay", action="store_true", help="show the recording even if eBPF would work"
    )
    source.add_argument(
        "--record", type=Path, metavar="DIR", help="also write such a recording into DIR"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if it went well and the comparison is exact."""
    if arguments.seconds < 3:
        raise ConfigError("--seconds", "at least 3")
    # The first as well: who is started in the background of a script has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console(highlight=False)
    console.print("[bold]podwire demo[/]  who talks to whom, seen from the kernel\n")
    if not arguments.replay:
        reason = _why_not_live()
        if reason is None:
            try:
                return _live(console, arguments)
            except UnsupportedFeature as error:
                reason = str(error)
        console.print(f"[yellow]Not on the live kernel: {reason}[/]")
        console.print("[yellow]Showing a recording of the same demo instead.[/]\n")
    return _replayed(console, arguments)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _why_not_live() -> str | None:
    if os.geteuid() != 0:
        return "it needs root (try: sudo podwire demo)"
    try:
        Shop.require_programs()
    except UnsupportedFeature as error:
        return str(error)
    return None


def _live(console: Console, arguments: argparse.Namespace) -> int:
    data = _fresh(arguments.data)
    record: Path | None = arguments.record
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
    with Cluster(TAG, WORKLOADS, NODE) as cluster:
        kube = data / KUBE_FILE
        kube.write_text(json.dumps(cluster.kube_list(), indent=1))
        _done(
            console,
            f"a cluster of {len(cluster.pods)} pods and {len(cluster.services)} services, "
            "made of network namespaces and cgroups",
        )
        recording = data / "whole.recording.gz" if record else None
        options = LocalOptions(data, kube=kube, http_port=0, node=NODE, record=recording)
        shop = Shop(cluster, data / "shop", arguments.seconds)
        with _machine(console, options) as machine:
            shop.start_servers()
            _done(console, "nginx, node.js, Python and OpenSSL serve; h2load, curl, Python call")
            shop.start_clients()
            _watch_traffic(console, machine, shop)
            _stop(console, machine)
        for failure in shop.failures():
            console.print(f"[red]{failure}[/]")
        truth = shop.access_log()
    if record is not None and recording is not None:
        containers = {pod.container_id for pod in cluster.pods}
        reduce_recording(recording, record / RECORDING, containers)
        recording.unlink()
        shutil.copy(kube, record / KUBE_FILE)
        (record / TRUTH_FILE).write_text(json.dumps(asdict(truth)) + "\n")
    return _show(console, data, truth)


def _replayed(console: Console, arguments: argparse.Namespace) -> int:
    data = _fresh(arguments.data)
    folder = files("deploy").joinpath("data")
    if not folder.joinpath(RECORDING).is_file():
        raise ConfigError("demo", f"the recording {RECORDING} is not part of this installation")
    with (
        as_file(folder.joinpath(RECORDING)) as recording,
        as_file(folder.joinpath(KUBE_FILE)) as kube,
    ):
        options = LocalOptions(
            data, kube=kube, http_port=0, node=NODE, replay=recording, replay_pace="fast"
        )
        with _machine(console, options) as machine, console.status("replaying"):
            while not machine.is_done:
                machine.check()
                time.sleep(TICK_S)
            _stop(console, machine)
    truth = AccessLog(**json.loads(folder.joinpath(TRUTH_FILE).read_text()))
    return _show(console, data, truth)


@contextmanager
def _machine(console: Console, options: LocalOptions) -> Iterator[Machine]:
    started = time.monotonic()
    machine = Machine(options)
    try:
        with console.status("starting broker, kube publisher, collector, stream worker, sink"):
            machine.start()
            while not machine.is_done and not machine.is_watching():
                machine.check()
                if time.monotonic() - started > WATCH_TIMEOUT_S:
                    raise UnsupportedFeature("demo", "the collector did not come up in time")
                time.sleep(TICK_S)
        seconds = time.monotonic() - started
        _done(console, f"podwire runs: broker, kube, collector, streams, sink ({seconds:.1f} s)")
        yield machine
    except PartFailed as error:
        if error.name == "collector" and options.replay is None:
            raise UnsupportedFeature("demo", str(error)) from error
        raise
    finally:
        machine.kill()


def _watch_traffic(console: Console, machine: Machine, shop: Shop) -> None:
    columns = (
        TextColumn("  traffic"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    deadline = time.monotonic() + shop.seconds + TRAFFIC_GRACE_S
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=shop.seconds)
        started = time.monotonic()
        while shop.is_busy and time.monotonic() < deadline:
            machine.check()
            text = (
                f"{plural(machine.figures.events, 'kernel event')}, "
                f"{plural(machine.figures.connections, 'open connection')}"
            )
            done = min(time.monotonic() - started, shop.seconds)
            progress.update(task, completed=done, description=text)
            time.sleep(TICK_S)
    if shop.is_busy:
        raise ConfigError("demo", "the traffic did not end in time; is the machine very busy?")
    _done(
        console, f"{shop.seconds} s of traffic, {count(shop.succeeded_requests())} calls by h2load"
    )


def _stop(console: Console, machine: Machine) -> None:
    started = time.monotonic()
    with console.status("storing the rest"):
        problems = machine.stop()
    seconds = time.monotonic() - started
    for problem in problems:
        console.print(f"[red]{problem}[/]")
    lost = sum(machine.figures.losses.values())
    _done(
        console,
        f"{count(machine.figures.counted)} kernel events in SQL, {count(lost)} lost "
        f"({seconds:.1f} s)\n",
    )


def _show(console: Console, data: Path, truth: AccessLog) -> int:
    services = [f"{workload.name}.{workload.namespace}" for workload in WORKLOADS]
    with Database(data) as database:
        relations = load_relations(database, services)
        served = load_served(database, services)
        endpoints = load_endpoints(database, services)
        packets = load_packets(database, services)
        waits = load_waits(database, services)
    console.print(topology(relations))
    console.print()
    console.print(relation_table(relations, console.width))
    console.print(served_table(served))
    if endpoints:
        console.print(endpoint_table(endpoints))
    if packets:
        console.print(packet_table(packets))
    if waits:
        console.print(wait_table(waits))
    frontend = next((each for each in served if each.service == "frontend.shop"), None)
    table, is_exact = truth_table(truth, frontend)
    console.print(table)
    console.print("[bold]Go on with SQL[/]")
    console.print(f"  {program()} sql --data {data}", soft_wrap=True, style="green")
    console.print(f"  {program()} sql --data {data} {EXAMPLE!r}", soft_wrap=True, style="green")
    return 0 if is_exact else 1


def _fresh(data: Path) -> Path:
    try:
        if data.exists():
            _require_ours(data)
            with lock_data(data):
                shutil.rmtree(data)
        data.mkdir(parents=True)
        (data / MARKER).touch()
    except OSError as error:
        raise ConfigError("--data", f"{data} cannot be made: {error.strerror}") from error
    return data.resolve()


def _require_ours(data: Path) -> None:
    if data.is_dir():
        names = {path.name for path in data.iterdir()}
        if not names or names & {MARKER, KUBE_FILE}:
            return
    raise ConfigError("--data", f"{data} exists and is not from an earlier demo")


def _done(console: Console, text: str) -> None:
    console.print(f"[green]✓[/] {text}")
