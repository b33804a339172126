"""A Rust program that serves and asks inside TLS with rustls, built by cargo."""

from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING, Final

from tests.http.servers import REPOSITORY
from tests.requirements import program
from tests.tls.servers import HERE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["build"]

_KEPT: Final = REPOSITORY / ".cache" / "rust"
_SETTINGS: Final = {
    "CARGO_TARGET_DIR": str(_KEPT),
    # Debian's cargo would fetch the index of all packages; not to, it calls unstable.
    "RUSTC_BOOTSTRAP": "1",
    "CARGO_UNSTABLE_SPARSE_REGISTRY": "true",
}


@functools.cache
def build(is_stripped: bool = False) -> Path:
    """Build it, with symbols or without; what cargo has built before is kept."""
    if is_stripped:
        stripped = _KEPT / "stripped"
        subprocess.run([program("strip"), "-o", stripped, build()], check=True)
        return stripped
    answer = subprocess.run(
        [program("cargo"), "build", "--quiet", "--release", "--locked"],
        cwd=HERE / "rust",
        env=os.environ | _SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return _KEPT / "release" / "rustls-test"
