"""One query over the HTTP interface of ClickHouse: a server, or a sink with the engine inside."""

from __future__ import annotations

import http.client
from typing import Final
from urllib.parse import unquote, urlencode, urlsplit

from schemas.errors import PodwireError, TransportError

__all__ = ["QueryError", "ask", "first_line"]

_PORTS: Final = {"http": 8123, "https": 8443}


class QueryError(PodwireError):
    """ClickHouse refused the query; its own words."""


def ask(
    url: str,
    query: str,
    database: str,
    *,
    password: str = "",
    output_format: str = "TabSeparatedWithNames",
    timeout_s: float,
) -> str:
    """Return the answer as text.

    Args:
        url: ``http://`` or ``https://``, with user and password where it has them.
        query: One query; its own FORMAT clause wins.
        database: Whose tables need no prefix.
        password: Instead of that in the URL.
        output_format: ClickHouse's name of the format otherwise.
        timeout_s: For each step of connecting and reading.

    Raises:
        QueryError: If ClickHouse refuses the query.
        TransportError: If nobody answers there.
    """
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", port, timeout=timeout_s)
    headers = {"X-ClickHouse-User": unquote(parts.username or "default")}
    if password := password or unquote(parts.password or ""):
        headers["X-ClickHouse-Key"] = password
    options = urlencode({"database": database, "default_format": output_format})
    try:
        connection.request("POST", f"/?{options}", query.encode(), headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        where = f"{parts.scheme}://{parts.hostname}:{port}"
        raise TransportError(f"no answer from {where}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise QueryError(first_line(text))
    return text


def first_line(text: str) -> str:
    """Return what ClickHouse says first of an error, without what follows."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no answer"
