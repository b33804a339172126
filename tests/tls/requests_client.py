"""Requests asks a server on one connection: ``URL COUNT``."""

from __future__ import annotations

import sys
import warnings

import requests


def main(url: str, count: int) -> None:
    """Ask for ``URL/0`` and so on; fails unless every answer is good."""
    warnings.simplefilter("ignore")  # it is told not to look at certificates
    with requests.Session() as session:
        session.trust_env = session.verify = False
        for number in range(count):
            assert session.get(f"{url}/{number}", timeout=30).status_code == 200


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
