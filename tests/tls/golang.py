"""A Go program that serves and asks inside TLS, built by Debian's Go or that of ``PODWIRE_GO``."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.http.clients import Sent, run_tool
from tests.http.servers import REPOSITORY
from tests.requirements import program, unmet
from tests.tls.programs import where
from tests.tls.servers import HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.http.clients import Address

__all__ = ["GO", "become", "build"]

GO: Final = os.environ.get("PODWIRE_GO", "/usr/lib/go/bin/go")
"""Debian's has its standard library compiled, and gRPC as a package."""
_KEPT: Final = REPOSITORY / ".cache" / "go"
_SETTINGS: Final = {
    "GO111MODULE": "off",
    "GOENV": "off",
    "GOFLAGS": "",
    "GOPATH": "/usr/share/gocode",
    "GOTOOLCHAIN": "local",
}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="podwire-go-")


@functools.cache
def build(kind: str = "plain", *options: str) -> Path:
    """Build it once, and keep it: a virtual machine would take many minutes.

    Args:
        kind: Of the result: ``stripped`` has no symbols, else any name.
        options: Of ``go build``.
    """
    if not Path(GO).is_file():
        unmet("tools", f"no {GO} (Debian: golang-go, golang-google-grpc-dev)")
    made_of = (GO, run_tool([GO, "version"]), (HERE / "go" / "main.go").read_text(), *options)
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    kept = _KEPT / digest / kind
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            _make(Path(work) / kind, kind, options).replace(kept)
    return kept


def _make(result: Path, kind: str, options: Sequence[str]) -> Path:
    if kind == "stripped":
        subprocess.run([program("strip"), "-o", result, build()], check=True)
        return result
    answer = subprocess.run(
        [GO, "build", *options, "-o", result, "."],
        cwd=HERE / "go",
        env={"GOCACHE": f"{_folder().name}/cache"} | os.environ | _SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return result


def become(binary: Path, address: Address, count: int) -> Sent:
    """Wait in a read, and have another program ask with HTTP/1.1 in the same process."""
    run_tool([str(binary), "become", where(address), str(count)])
    return Sent(count, count)
