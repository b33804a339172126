"""aiohttp asks a server many times, on several connections at once: ``URL COUNT CONNECTIONS``."""

from __future__ import annotations

import asyncio
import ssl
import sys

import aiohttp


async def main(url: str, count: int, connections: int) -> None:
    """Ask for ``URL?0`` and so on; fails unless every answer is good."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connector = aiohttp.TCPConnector(ssl=context, limit=connections)

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        async with session.get(f"{url}/{number}") as response:
            assert response.status == 200
            await response.read()

    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(ask(session, number) for number in range(count)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
