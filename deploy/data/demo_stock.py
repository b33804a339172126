"""The "stock" pod of the demo: asyncio, keep-alive. Usage: demo_stock.py PORT. Library only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

BODY = json.dumps({"items": [{"id": number, "left": 7} for number in range(80)]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request on the connection with the same list."""
    is_done = asyncio.IncompleteReadError, ConnectionError
    with contextlib.closing(writer), contextlib.suppress(*is_done):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.002)
            writer.write(ANSWER)
            await writer.drain()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(serve, "", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
