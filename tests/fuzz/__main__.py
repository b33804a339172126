"""``python -m tests.fuzz NAME [--seconds N]``: inputs that coverage guides, until one fails.

Each target is a module of this package with ``check(data)`` and ``seeds()``. What was learnt stays
in ``.cache/fuzz/NAME``, failing inputs as ``crash-*`` beside it.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import atheris

import tests.fuzz

ROOT = Path(__file__).parents[2]


def names() -> list[str]:
    found = (item.name for item in pkgutil.iter_modules(tests.fuzz.__path__))
    return sorted(name for name in found if not name.startswith(("_", "test_")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="where what was learnt is kept")
    chosen = parser.parse_args()
    corpus: Path = chosen.corpus or ROOT / ".cache" / "fuzz" / chosen.name
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["collector.protocols", "collector.tls.hello"]):
        target = importlib.import_module(f"tests.fuzz.{chosen.name}")
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={chosen.seconds}",
            f"-artifact_prefix={corpus.parent}/crash-{chosen.name}-",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-max_len=4096",
            "-verbosity=1",
        ],
        target.check,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
