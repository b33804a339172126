"""The "billing" pod of the demo: one TLS payment and one stock look-up a round, then hang up.

Usage: demo_billing.py ROUNDS PAUSE_S PAYMENTS_HOST PAYMENTS_PORT STOCK_HOST STOCK_PORT.
Library only.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time

REQUEST = b"GET /pay HTTP/1.0\r\nHost: demo\r\n\r\n"


def exchange(sock: socket.socket) -> None:
    """Send one request and read the answer to its end."""
    sock.sendall(REQUEST)
    while sock.recv(65536):
        pass


def main() -> None:
    """Run all rounds."""
    rounds, pause = int(sys.argv[1]), float(sys.argv[2])
    payments = (sys.argv[3], int(sys.argv[4]))
    stock = (sys.argv[5], int(sys.argv[6]))
    context = ssl.create_default_context()
    context.check_hostname = False  # the demo makes its certificate on the spot
    context.verify_mode = ssl.CERT_NONE
    for _ in range(rounds):
        with socket.create_connection(payments) as plain, context.wrap_socket(plain) as secure:
            exchange(secure)
        with socket.create_connection(stock) as plain:
            plain.sendall(REQUEST)
            plain.recv(65536)
        time.sleep(pause)


main()
