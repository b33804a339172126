"""A Rust program that serves and asks inside TLS with rustls, built by cargo."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from tests.http.servers import REPOSITORY
from tests.requirements import program
from tests.tls.servers import HERE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["build"]

_KEPT: Final = REPOSITORY / ".cache" / "rust"
_SOURCES: Final = ("Cargo.toml", "Cargo.lock", "src/main.rs")
_SETTINGS: Final = {
    "CARGO_TARGET_DIR": str(_KEPT / "target"),
    # Debian's cargo would fetch the index of all packages; not to, it calls unstable.
    "RUSTC_BOOTSTRAP": "1",
    "CARGO_UNSTABLE_SPARSE_REGISTRY": "true",
}


@functools.cache
def build(is_stripped: bool = False) -> Path:
    """Build it once, with symbols or without, and keep it: a virtual machine may have no cargo."""
    sources = [(HERE / "rust" / name).read_bytes() for name in _SOURCES]
    digest = hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]
    kept = _KEPT / digest / ("stripped" if is_stripped else "plain")
    if not kept.is_file():
        made = build() if is_stripped else _make()
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_name(f"{kept.name}.{os.getpid()}")
        if is_stripped:
            subprocess.run([program("strip"), "-o", new, made], check=True)
        else:
            shutil.copy(made, new)
        new.replace(kept)
    return kept


def _make() -> Path:
    answer = subprocess.run(
        [program("cargo"), "build", "--quiet", "--release", "--locked"],
        cwd=HERE / "rust",
        env=os.environ | _SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return _KEPT / "target" / "release" / "rustls-test"
