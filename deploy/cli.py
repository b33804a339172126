"""``podwire``: one command line with a subcommand for each part."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line."""
    return 0


if __name__ == "__main__":
    sys.exit(main())
