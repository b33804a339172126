"""A ClickHouse stand-in over HTTP: the read-only endpoint with its guards taken off.

It fronts an embedded engine in its own process, so that what the sink sends to a server travels
over real HTTP and is read by the real engine. Run: ``python -m tests.sink.writable_server PATH``;
it prints its port.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from sink import sql_server
from sink.sql_engine import Answer, Request, SqlEngine, SqlLimits
from sink.sql_guard import Checked

sql_server.MAX_BODY = 256 * 1024 * 1024


class WritableEngine(SqlEngine):
    """Takes every statement and every setting; an insert's body comes as bytes."""

    def _check(self, query: str) -> Checked:
        words = query.rstrip().rsplit(None, 2)
        name = words[-1] if len(words) == 3 and words[1].upper() == "FORMAT" else None
        return Checked(query, name)

    def _restrict(self, connection: Any) -> None:
        del connection

    def _settings(self, asked):
        return {"session_timezone": "UTC", **asked}

    def insert(self, statement: str, body: bytes, settings: dict[str, str]) -> Answer:
        head, _, kind = statement.strip().rpartition("FORMAT")
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(body)
            file.flush()
            return self.run(
                Request(f"{head} FROM INFILE '{file.name}' FORMAT {kind}", settings=settings)
            )


class WritableExchange(sql_server._Exchange):
    def _run(self, parameters, body, query_id):
        if "query" in parameters and body:
            settings = {k: v for k, v in parameters.items() if k not in sql_server._NOT_SETTINGS}
            return self.engine.insert(parameters["query"], body, settings)
        head, newline, data = body.partition(b"\n")
        if head.lstrip()[:6].upper() == b"INSERT" and b" FORMAT " in head and newline:
            settings = {k: v for k, v in parameters.items() if k not in sql_server._NOT_SETTINGS}
            return self.engine.insert(head.decode(), data, settings)
        return super()._run(parameters, body, query_id)

    def _decoded(self, body):
        if self.headers.get("Content-Encoding") == "lz4":
            import lz4.frame

            return lz4.frame.decompress(body)
        return super()._decoded(body)


def main() -> None:
    engine = WritableEngine(sys.argv[1], SqlLimits(seconds=60))
    sql_server._Exchange = WritableExchange
    server = sql_server.SqlServer(engine, "127.0.0.1", int(sys.argv[2]))
    print(server.port, flush=True)
    server._server.serve_forever()


__all__ = ["main"]

if __name__ == "__main__":
    main()
