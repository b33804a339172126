"""The kernel half on other kernels: ``python -m tests.vm [--kernel NAME ...] [-- pytest ...]``."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.bpf.harness import TIERS
from tests.requirements import missing
from tests.vm.kernels import CACHE, KERNELS, fetch
from tests.vm.machine import boot, end_all

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S: Final = 7200.0
_TESTS: Final = ("tests/bpf", "-m", "bpf", "--timeout=600", "--durations=5", "-v")
_QUICK: Final = (
    "tests/bpf/test_programs.py",
    "tests/bpf/test_transfers.py::test_write_calls",
    "tests/bpf/test_transfers.py::test_read_calls",
    "tests/bpf/test_payloads.py::test_every_call_that_writes",
    "tests/bpf/test_payloads.py::test_every_call_that_reads",
    "tests/bpf/test_ipvs.py",
    "tests/bpf/test_tls.py::test_both_hellos_are_told_of_any_session",
    "tests/bpf/test_stages.py::test_requests_and_responses",
    "tests/bpf/test_stages_times.py::test_an_unknown_neighbour",
    "tests/bpf/test_stages_times.py::test_delay_on_the_way_out",
    "tests/bpf/test_stages_tiers.py::test_every_tier_measures_what_it_can",
    "tests/bpf/test_stages_tiers.py::test_tiers_agree",
)
"""What a change is tried with before all is: every program, and every figure once."""
_NOT_QUICK: Final = ("bridge", "segments")
"""Words in names of those among them that show the same once more."""
_NOT_EMULATED: Final = {
    "slow": "hours without hardware virtualisation",
    "million": "the same",
    "short_connections": "tens of thousands of connections take most of an hour",
}
"""Words in names of tests that emulation makes meaningless, and why."""
_TAIL: Final = 40
_DETAILS: Final = 400
"""Lines shown of a machine that hangs, and of tests that fail."""
_FETCHING: Final = threading.Lock()
"""apt works for one at a time."""


def main(arguments: list[str]) -> int:
    """Run the tests in the machines; 0 if all passed in all."""
    own, _, given = " ".join(arguments).partition("-- ")
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--kernel", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--tier", nargs="+", choices=list(TIERS), default=list(TIERS))
    parser.add_argument("--quick", action="store_true", help="one test of each kind")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="seconds per kernel")
    parser.add_argument("--jobs", type=int, default=1, help="machines at once")
    options = parser.parse_args(own.split())
    reason = missing("vm")
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    # A machine has a process group of its own: whoever ends this process ends it too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tests = given.split() or _selection(options.quick)
    order = ["no-costs" if given else "costs", *tests]
    run = partial(_run, tiers=options.tier, order=order, timeout_s=options.timeout)
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            reports = dict(zip(options.kernel, pool.map(run, options.kernel), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    if verified := {name: each for name, each in reports.items() if "programs" in each}:
        _print_costs(verified)
    return int(any(report.get("pytest") != 0 for report in reports.values()))


def _selection(quick: bool) -> list[str]:
    tests = [*_QUICK, *_TESTS[1:]] if quick else _TESTS
    # One word for the whole expression.
    left_out = [f"not({word})" for word in (*_NOT_EMULATED, *(_NOT_QUICK if quick else ()))]
    return [*tests, "-k", "(" + ")and(".join(left_out) + ")"]


def _run(name: str, tiers: list[str], order: list[str], timeout_s: float) -> dict[str, Any]:
    try:
        with _FETCHING:
            kernel = fetch(name)
    except RuntimeError as error:
        print(f"\n=== {name}: FAILED, its packages could not be fetched: {error}", flush=True)
        return {}
    output = CACHE / "out" / name
    shutil.rmtree(output, ignore_errors=True)
    print(f"\n=== {name} ({kernel.release}), {timeout_s:.0f} s at most", flush=True)
    began = time.monotonic()
    guest = [sys.executable, "-B", "-m", "tests.vm.guest", str(output), *order]
    command = ["env", f"PODWIRE_TIERS={','.join(tiers)}", *guest]
    failure, printed = "", list[str]()
    try:
        boot(kernel, command, output, timeout_s)
    except RuntimeError as error:
        failure = f": {error}"
    log, report = output / "pytest.log", output / "report.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    said = log.read_text(errors="replace").splitlines() if log.exists() else []
    summary = [line for line in said if re.match(r"FAILED|ERROR|SKIPPED|=+ .* in ", line)]
    if "pytest" not in found:
        failure = failure or ": the machine ended before its tests did"
        printed += [*_tail(output / "console.log"), "--- end of the console", *said[-_TAIL:]]
    elif found["pytest"]:
        # Where this ran may be gone when somebody reads it: what failed is shown here.
        details = [at for at, line in enumerate(said) if re.match(r"=+ (FAILURES|ERRORS) =+", line)]
        printed += said[min(details, default=-_TAIL) :][-_DETAILS:]
    verdict = "passed" if found.get("pytest") == 0 else f"FAILED{failure}"
    verdict += f" after {time.monotonic() - began:.0f} s"
    printed += [
        *summary,
        f"=== {name} {verdict} ({os.path.relpath(output)}: pytest.log, console.log)",
    ]
    # All at once, as another machine may speak too.
    print(*printed, sep="\n", flush=True)
    return found


def _tail(console: Path) -> list[str]:
    text = console.read_text(errors="replace") if console.exists() else ""
    return text.splitlines()[-_TAIL:]


def _print_costs(reports: dict[str, dict[str, Any]]) -> None:
    print("\nverifier: instructions processed / bytes of stack of all functions")
    print(f"{'':42}" + "".join(f"{name:>16}" for name in reports))
    rows = {
        (each, program)
        for report in reports.values()
        for each, programs in report["programs"].items()
        for program in programs
    }
    for each, program in sorted(rows):
        cells = [report["programs"].get(each, {}).get(program) for report in reports.values()]
        print(f"{each + '/' + program:42}" + "".join(f"{_cell(cell):>16}" for cell in cells))


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if "refused" in found:
        return "refused"
    return f"{found['instructions']} / {found['stack']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
