"""Python's blocking client asks a server on one connection: ``HOST PORT PATH COUNT``."""

from __future__ import annotations

import http.client
import ssl
import sys


def main(host: str, port: int, path: str, count: int) -> None:
    """Ask for ``PATH/0`` and so on; fails unless every answer is good."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=30)
    for number in range(count):
        connection.request("GET", f"{path}/{number}")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
