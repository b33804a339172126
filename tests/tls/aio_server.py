"""An aiohttp server inside TLS that logs what it answered: ``PORT CERTIFICATE KEY LOG``.

One JSON object a line: the client's port, the path and the size of the answer. ``ready`` goes to
standard output once it listens.
"""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path

from aiohttp import web


def main(port: int, certificate: str, key: str, log: Path) -> None:
    """Serve until SIGTERM; ``/size/N/...`` is answered with N bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def answer(request: web.Request) -> web.Response:
        size = int(request.match_info["size"])
        received = len(await request.read())
        assert request.transport is not None
        line = {
            "port": request.transport.get_extra_info("peername")[1],
            "method": request.method,
            "path": request.path,
            "received": received,
            "sent": size,
        }
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return web.Response(body=b"a" * size)

    def say_ready(_: str) -> None:
        print("ready", flush=True)

    application = web.Application()
    application.router.add_route("*", "/size/{size}/{name:.*}", answer)
    runner_options = {"print": say_ready, "access_log": None, "handle_signals": True}
    web.run_app(application, host="127.0.0.1", port=port, ssl_context=context, **runner_options)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
