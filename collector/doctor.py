"""``podwire doctor``: what this machine lets the collector measure, and what to do if it does not.

Everything is found by doing it: the programs are really loaded and attached, then let go again.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector.attach import (
    Hook,
    attach,
    attach_first,
    missing_hooks,
)
from collector.btf import VMLINUX
from collector.config import RINGS, CollectorConfig, object_paths
from collector.figures import STAGE_FIGURES, availability, measured
from collector.libbpf import load_library
from collector.netlink import host_path, ipvs_tells, read_conntrack
from collector.refusals import effective_capabilities, missing_capabilities
from collector.stages import Stages, start_stages
from collector.tls.watcher import start_tls
from schemas.config import KafkaConfig, load_file
from schemas.errors import BpfError, PodwireError
from schemas.topics import EVENTS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from collector.bpf_object import BpfObject
    from collector.tls.probes import File
    from collector.tls.watcher import Watcher

__all__ = ["HELP", "Check", "add_arguments", "run"]

HELP = "Say what this machine can measure, what is missing, and what to do about it"

_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_KAFKA_TIMEOUT_S: Final = 3.0
_SMALL_RING: Final = 65_536
SWITCHED_OFF: Final = "switched off: collector.protocols"
_STAGES_ADVICE: Final = (
    "connections, calls, bytes and packets need none of these; see the hooks and figures below"
)


_CONNTRACK_ADVICE: Final = (
    "pods behind service addresses stay unknown: grant CAP_NET_ADMIN in the node's network"
)
_IPVS_ADVICE: Final = (
    "pods behind services of IPVS stay unknown: set net.ipv4.vs.conntrack=1, as kube-proxy does"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `advice` says what to do where it is not good."""

    name: str
    good: bool
    found: str
    advice: str = ""
    is_partial: bool = False
    """Good enough to work, but not all that there is."""


@dataclass(frozen=True, slots=True)
class Found:
    """The state of the programs."""

    hooks: tuple[Hook, ...] = ()
    stages: Stages = field(default_factory=lambda: Stages(None))
    without_parsers: str = ""
    """Why no message is parsed, if so."""
    tls_files: tuple[File, ...] = ()
    """Files of TLS libraries in use."""

    @property
    def all_hooks(self) -> tuple[Hook, ...]:
        """Those of both objects."""
        return (*self.hooks, *self.stages.hooks)


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
    loaded, found = load_check(config)
    checks += [*loaded, conntrack_check(config)]
    if not arguments.skip_kafka:
        checks.append(kafka_check(kafka))
    report(Console(), checks, found)
    return 0 if all(check.good for check in checks) else 1


def machine_checks() -> list[Check]:
    """Look at kernel, BTF, capabilities, lockdown and libbpf."""
    held = effective_capabilities()
    missing = missing_capabilities(held)
    checks = [
        Check("kernel", True, f"Linux {platform.release()} on {platform.machine()}"),
        Check(
            "BTF",
            VMLINUX.exists(),
            str(VMLINUX) if VMLINUX.exists() else "none",
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


def load_check(config: CollectorConfig) -> tuple[list[Check], Found]:
    """Load and attach the programs, then let them go."""
    parses = config.protocols != "off"
    constants = {
        "podwire_stages": int(config.stages != "off"),
        "podwire_payloads": int(parses),
    }
    try:
        paths = object_paths(config)
        rings = dict.fromkeys(RINGS, _SMALL_RING)
        opened, hooks, passed_over = _attach(paths, constants, rings)
    except PodwireError as error:
        return [Check("programs", False, "not loaded", str(error).splitlines()[0])], Found()
    stages = start_stages(config, opened, constants)
    tls = start_tls(config, opened, constants)
    files = () if tls.probes is None else tuple(each for each in tls.probes.files if each.library)
    found = Found(tuple(hooks), stages, "" if parses else SWITCHED_OFF, files)
    inside = tls_check(tls)
    tls.close()
    for each in (stages.object, opened):
        if each is not None:
            each.close()
    attached = sum(hook.attached for hook in hooks)
    text = f"{attached} of {len(hooks)} attached ({'/'.join(opened.path.parts[-2:])})"
    if passed_over:
        text += f"; {passed_over}"
    core = Check("programs", attached == len(hooks), text, "see the hooks below")
    return [core, _stages_check(found), inside], found


def tls_check(tls: Watcher) -> Check:
    """Say which TLS libraries are read here, and of how many files that could not be found out."""
    if tls.probes is None:
        return Check("TLS", True, tls.reason, is_partial=True)
    libraries = [file for file in tls.probes.files if file.library]
    refused = sum(not file.functions for file in libraries)
    forbidden = tls.probes.failed["forbidden"]
    text = f"{len(libraries) - refused} of {len(libraries)} files of TLS libraries are read"
    if forbidden:
        text += f"; {forbidden} processes cannot be looked at"
    advice = "run as root or with CAP_SYS_PTRACE" if forbidden else "see the files below"
    return Check("TLS", True, text, advice, is_partial=bool(forbidden or refused))


def _stages_check(found: Found) -> Check:
    # The core figures need none of it: what is missing here is no failure.
    here = measured(found.all_hooks)
    count = sum(figure in here for figure in STAGE_FIGURES)
    text = f"{count} of {len(STAGE_FIGURES)} figures of layers 2 to 4"
    if found.stages.reason:
        text += f": {found.stages.reason}"
    return Check("stages", True, text, _STAGES_ADVICE, is_partial=count < len(STAGE_FIGURES))


def _attach(
    paths: list[Path], constants: dict[str, int], rings: dict[str, int]
) -> tuple[BpfObject, list[Hook], str]:
    try:
        return attach_first(paths, constants, rings)
    except BpfError:  # shown by hook, unless nothing loads at all
        opened, hooks = attach(paths[0], constants, rings, core=())
        return opened, hooks, ""


def conntrack_check(config: CollectorConfig) -> Check:
    """Ask the node's namespace which connections it tracks."""
    path = host_path(config)
    if config.conntrack == "off":
        return Check("conntrack", True, "switched off", _CONNTRACK_ADVICE, is_partial=True)
    try:
        count, is_told = read_conntrack(path), ipvs_tells(path)
    except OSError as error:
        found = f"{path}: {error.strerror}"
        return Check("conntrack", True, found, _CONNTRACK_ADVICE, is_partial=True)
    found = f"{path}, {count} connections"
    if not is_told:
        found += "; IPVS does not tell it"
    return Check("conntrack", True, found, _IPVS_ADVICE, is_partial=not is_told)


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


def report(console: Console, checks: list[Check], found: Found) -> None:
    """Print the checks, the hooks, the figures, and why what is missing is missing."""
    table = _table("this machine", "check", "state", "found", "what to do")
    for check in checks:
        advice = "" if check.good and not check.is_partial else check.advice
        state = Text("partly", "yellow") if check.is_partial else _mark(check.good)
        table.add_row(check.name, state, Text(check.found), Text(advice))
    console.print(table)
    if not found.hooks:
        return
    footnotes = Footnotes()
    table = _table("hooks", "program", "state", "section", "why not")
    for hook in found.hooks:
        table.add_row(hook.program, _mark(hook.attached), hook.section, Text(hook.reason))
    console.print("", table)
    if found.stages.hooks:
        table = _table("hooks of layers 2 to 4", "where", "state", "through", "why not")
        for target in stage_targets(found.stages.hooks):
            ways = ", ".join(target.ways)
            why = footnotes.marks(target.refusals)
            table.add_row(target.name, _mark(bool(ways), "-"), ways, Text(why))
        console.print("", table)
    if found.tls_files:
        table = _table("TLS libraries in use", "file", "state", "library", "functions", "why not")
        for file in found.tls_files:
            count = str(file.functions)
            table.add_row(
                Text(file.path), _mark(bool(file.functions)), file.library, count, file.reason or ""
            )
        console.print("", table)
    table = _table("figures", "figure", "state", "through, or what is missing")
    for row in availability(found.all_hooks, found.stages.reason, found.without_parsers):
        lacking = [f"{names} {footnotes.marks(reasons)}" for names, reasons in row.lacking]
        note = row.through or row.reason or "; ".join(lacking)
        table.add_row(row.figure, _mark(row.available, "-"), Text(note))
    console.print("", table)
    if footnotes.texts:
        table = _table("why not", "", "")
        table.show_header = False
        for number, text in enumerate(footnotes.texts, 1):
            table.add_row(f"({number})", Text(text))
        console.print("", table)


@dataclass(frozen=True, slots=True)
class Target:
    """A function or tracepoint: the ways it is hooked, and why it is not in others."""

    name: str
    ways: tuple[str, ...]
    refusals: tuple[str, ...]


def stage_targets(hooks: Sequence[Hook]) -> list[Target]:
    """Group hooks by what they hook, in the order of the object."""
    grouped: dict[tuple[str, bool], list[Hook]] = {}
    for hook in hooks:
        grouped.setdefault((hook.target, bool(hook.twin)), []).append(hook)
    targets = []
    for (name, _), each in grouped.items():
        ways = sorted({hook.way for hook in each if hook.attached})
        refused = [hook for hook in each if not hook.attached]
        refusals = dict.fromkeys(reason for why in missing_hooks(refused) for reason in why.reasons)
        targets.append(Target(name, tuple(ways), tuple(refusals)))
    return targets


class Footnotes:
    """Texts that many rows need: each shown once, referred to by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def marks(self, texts: Sequence[str]) -> str:
        """Return the numbers that stand for texts, such as ``(1) (2)``."""
        self.texts += [each for each in texts if each not in self.texts]
        return " ".join(f"({self.texts.index(each) + 1})" for each in texts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _mark(good: bool, bad: str = "missing") -> Text:
    return Text("ok", "green") if good else Text(bad, "red" if bad == "missing" else "yellow")
