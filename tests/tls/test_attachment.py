"""No process is missed once its library was seen, wherever that is and however short it lives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.http import truth
from tests.requirements import unmet
from tests.tls.servers import HOST

if TYPE_CHECKING:
    from tests.http.observed import Collector
    from tests.tls.servers import TlsNginx

pytestmark = pytest.mark.bpf

CURLS: Final = int(os.environ.get("PODWIRE_CURLS", "1000"))
"""How many short-lived processes. Each takes its 15 ms of a CPU, most of it for its libraries."""
AT_ONCE: Final = 4
SETTLED: Final = 5
LOOP: Final = """
for number in $(seq {count}); do
  curl -sSk --http1.1 -o /dev/null {url}/$number?{tag} || exit 1
done
"""
SIGHT: Final = f"{sys.executable} -c 'import ctypes, time; ctypes.CDLL(\"%s\"); time.sleep(3)'"
"""A process that has a library for long enough to be looked at, however busy the machine."""


def loop(nginx: TlsNginx, count: int, tag: str) -> str:
    url = f"https://{HOST}:{nginx.port}/size/5"
    return LOOP.format(count=count, url=url, tag=tag)


def libssl() -> Path:
    """The library of this machine's curl."""
    curl = shutil.which("curl")
    if curl is None:
        unmet("bpf", "no curl on PATH (Debian: curl)")
    said = subprocess.run(["ldd", curl], capture_output=True, text=True, check=True).stdout
    found = [line.split()[2] for line in said.splitlines() if "libssl.so" in line]
    if not found:
        unmet("bpf", "this curl has no libssl of its own")
    return Path(found[0]).resolve()


def check_settled(nginx: TlsNginx, collector: Collector) -> None:
    """Fail unless both ends of every call that was made are known."""
    collector.stop()
    nginx.stop()
    expected = sorted(line["uri"].partition("?")[0] for line in nginx.lines())
    assert len(expected) == SETTLED
    for role, port in (("server", "local_port"), ("client", "remote_port")):
        found = [r for r in collector.rows() if r["role"] == role and r[port] == nginx.port]
        assert sorted(row["path"] for row in found if row["tls"]) == expected, role


def test_short_lived_processes(nginx: TlsNginx, collector: Collector) -> None:
    collector.start()
    # One more process for each number, and no shell between them.
    curl = ["curl", "-sSk", "--http1.1", "-o", "/dev/null", f"https://{HOST}:{nginx.port}/size/5/@"]
    subprocess.run(
        ["xargs", f"-P{AT_ONCE}", "-I@", *curl],
        input="\n".join(map(str, range(CURLS))),
        text=True,
        check=True,
        timeout=250,
    )
    collector.stop()
    nginx.stop()
    lines = nginx.lines()
    assert len(lines) == CURLS
    rows = collector.rows()
    for role in ("server", "client"):
        truth.check(rows, truth.from_nginx(lines, nginx.port, role), role, nginx.port)


def test_a_library_that_comes_later(nginx: TlsNginx, collector: Collector, tmp_path: Path) -> None:
    """The process that is the first ever to have it may be a connection ahead; none after it is."""
    collector.start()
    folder = tmp_path / "later"
    folder.mkdir()
    shutil.copy(libssl(), folder / "libssl.so.3")
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    script = SIGHT % (folder / "libssl.so.3") + loop(nginx, SETTLED, "later")
    command = ["sh", "-c", script]
    subprocess.run(command, check=True, timeout=60, env=environment)
    check_settled(nginx, collector)


def test_a_library_of_another_mount_namespace(
    nginx: TlsNginx, collector: Collector, tmp_path: Path
) -> None:
    if shutil.which("unshare") is None:
        unmet("bpf", "no unshare (Debian: util-linux)")
    collector.start()
    folder = tmp_path / "there"
    folder.mkdir()
    script = f"""
    mount -t tmpfs none {folder} && cp {libssl()} {folder}/libssl.so.3 || exit 1
    export LD_LIBRARY_PATH={folder}
    {SIGHT % (folder / "libssl.so.3")}
    {loop(nginx, SETTLED, "there")}
    """
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, timeout=60)
    assert list(folder.iterdir()) == []
    check_settled(nginx, collector)
