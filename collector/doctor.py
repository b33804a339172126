"""``podwire doctor``: what this machine lets the collector measure, and what to do if it does not.

Everything is found by doing it: the programs are really loaded and attached, then let go again.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector.attach import (
    Hook,
    attach,
    attach_first,
    effective_capabilities,
    missing_capabilities,
)
from collector.config import CollectorConfig, object_paths
from collector.figures import availability
from collector.libbpf import load_library
from schemas.config import KafkaConfig, load_file
from schemas.errors import BpfError, PodwireError
from schemas.topics import EVENTS

if TYPE_CHECKING:
    import argparse

    from collector.libbpf import BpfObject

__all__ = ["HELP", "Check", "add_arguments", "run"]

HELP = "Say what this machine can measure, what is missing, and what to do about it"

_VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_KAFKA_TIMEOUT_S: Final = 3.0
_SMALL_RING: Final = 65_536


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `advice` says what to do where it is not good."""

    name: str
    good: bool
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand."""
    parser.add_argument("--skip-kafka", action="store_true", help="look at this machine only")
    CollectorConfig.add_arguments(parser)
    KafkaConfig.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 if the collector can work here, else 1."""
    file = load_file(arguments.config) if arguments.config else None
    config = CollectorConfig.load(file, options=vars(arguments))
    kafka = KafkaConfig.load(file, options=vars(arguments))
    checks = machine_checks()
    loaded, hooks = load_check(config)
    checks.append(loaded)
    if not arguments.skip_kafka:
        checks.append(kafka_check(kafka))
    report(Console(), checks, hooks)
    return 0 if all(check.good for check in checks) else 1


def machine_checks() -> list[Check]:
    """Look at kernel, BTF, capabilities, lockdown and libbpf."""
    held = effective_capabilities()
    missing = missing_capabilities(held)
    checks = [
        Check("kernel", True, f"Linux {platform.release()} on {platform.machine()}"),
        Check(
            "BTF",
            _VMLINUX.exists(),
            str(_VMLINUX) if _VMLINUX.exists() else "none",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
        Check(
            "capabilities",
            not missing,
            f"{', '.join(missing)} missing" if missing else f"sufficient (uid {os.geteuid()})",
            "run as root, or grant CAP_BPF and CAP_PERFMON",
        ),
    ]
    state = _LOCKDOWN.read_text() if _LOCKDOWN.exists() else "[none]"
    mode = state.partition("[")[2].partition("]")[0] or "none"
    checks.append(
        Check(
            "lockdown",
            mode != "confidentiality",
            mode,
            "boot without lockdown=confidentiality: it forbids reading kernel memory",
        )
    )
    try:
        checks.append(Check("libbpf", True, load_library().version))
    except PodwireError as error:
        checks.append(Check("libbpf", False, str(error), "install the package libbpf1"))
    return checks


def load_check(config: CollectorConfig) -> tuple[Check, list[Hook]]:
    """Load and attach the programs, then let them go."""
    try:
        paths = object_paths(config)
        rings = dict.fromkeys(("connections", "transfers", "processes"), _SMALL_RING)
        opened, hooks, passed_over = _attach(paths, rings)
    except PodwireError as error:
        return Check("programs", False, "not loaded", str(error).splitlines()[0]), []
    opened.close()
    missing = [hook for hook in hooks if not hook.attached]
    good = not missing
    object_name = "/".join(opened.path.parts[-2:])
    found = f"{len(hooks) - len(missing)} of {len(hooks)} attached ({object_name})"
    if passed_over:
        found += f"; {passed_over}"
    return Check("programs", good, found, "see the hooks below"), hooks


def _attach(paths: list[Path], rings: dict[str, int]) -> tuple[BpfObject, list[Hook], str]:
    try:
        return attach_first(paths, {}, rings)
    except BpfError:  # shown by hook, unless nothing loads at all
        opened, hooks = attach(paths[0], {}, rings, core=())
        return opened, hooks, ""


def kafka_check(kafka: KafkaConfig) -> Check:
    """Ask the brokers for the events topic."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    try:
        admin = AdminClient({**kafka.client_settings(), "log_level": 0})
        topics = admin.list_topics(timeout=_KAFKA_TIMEOUT_S).topics
    except (KafkaException, ValueError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        return Check(
            "kafka",
            False,
            f"{kafka.bootstrap_servers}: {reason}",
            "start it, or set --bootstrap-servers; the collector keeps trying meanwhile",
        )
    if EVENTS.name not in topics:
        return Check(
            "kafka", False, f"topic {EVENTS.name} is missing", "create it: podwire schema apply"
        )
    partitions = len(topics[EVENTS.name].partitions)
    return Check("kafka", True, f"{kafka.bootstrap_servers}, {EVENTS.name} with {partitions}")


def report(console: Console, checks: list[Check], hooks: list[Hook]) -> None:
    """Print the checks, the hooks and the figures."""
    table = _table("this machine", "check", "state", "found", "what to do")
    for check in checks:
        advice = "" if check.good else check.advice
        table.add_row(check.name, _mark(check.good), Text(check.found), Text(advice))
    console.print(table)
    if not hooks:
        return
    table = _table("hooks", "program", "state", "section", "why not")
    for hook in hooks:
        table.add_row(hook.program, _mark(hook.attached), hook.section, Text(hook.reason))
    console.print(table)
    table = _table("figures", "figure", "state", "through, or why not")
    for row in availability(hooks):
        table.add_row(row.figure, _mark(row.available, "-"), Text(row.note))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _mark(good: bool, bad: str = "missing") -> Text:
    return Text("ok", "green") if good else Text(bad, "red" if bad == "missing" else "yellow")
