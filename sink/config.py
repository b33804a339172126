"""Settings of the sink and of its SQL endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from schemas.config import Config, setting
from schemas.errors import ConfigError
from sink.statements import Layout

__all__ = ["SinkConfig"]


@dataclass(frozen=True, repr=False)
class SinkConfig(Config):
    """Where rows go, how long they stay, and what is served beside."""

    SECTION: ClassVar[str] = "sink"

    url: str = setting(
        "http://default@127.0.0.1:8123",
        "ClickHouse: http(s)://user@host:port, or chdb:///directory for the embedded engine",
    )
    password: str = setting("", "Password of the ClickHouse user", secret=True)
    database: str = setting(
        "podwire", "Database that analysts query; rows are stored in <database>_store"
    )
    cluster: str = setting(
        "", "ClickHouse cluster: makes Replicated and Distributed tables, ON CLUSTER"
    )
    retention_days: int = setting(14, "Days that minutes are kept; 0 for ever", minimum=0)
    retention_hourly_days: int = setting(90, "Days that hours are kept; 0 for ever", minimum=0)
    retention_daily_days: int = setting(400, "Days that days are kept; 0 for ever", minimum=0)
    fsync: bool = setting(
        False,
        "Wait for the disk at every insert: survives a power cut too, not only a killed process",
    )
    create_schema: bool = setting(True, "Create and upgrade tables at start")
    group: str = setting("podwire-sink", "Kafka consumer group")
    insert_timeout_s: float = setting(60.0, "Time-out of one insert", minimum=1)
    retry_min_s: float = setting(0.2, "First pause before an insert is tried again", minimum=0.01)
    retry_max_s: float = setting(30.0, "Longest pause between two tries", minimum=0.1)
    bad_messages_in_a_row: int = setting(
        100, "Undecodable messages in a row after which the sink stops", minimum=1
    )
    access_log: bool = setting(
        False, "Store a row per HTTP call; streams.access_log makes the workers send them"
    )
    access_log_retention_days: int = setting(3, "Days that calls are kept; 0 for ever", minimum=0)
    access_log_sample: float = setting(
        1.0,
        "Share of the calls that is stored; those that failed or were slow are stored anyway",
        minimum=0,
        maximum=1,
    )
    access_log_slow_ms: float = setting(1000.0, "A call of so many milliseconds is slow", minimum=0)
    rollup_delay_s: int = setting(
        300, "How long after its end an hour or day is rolled up", minimum=0
    )
    sql_port: int = setting(
        0,
        "Port of the read-only SQL endpoint of the embedded engine; 0: off",
        minimum=0,
        maximum=65535,
    )
    sql_host: str = setting("127.0.0.1", "Address of the read-only SQL endpoint")
    sql_max_seconds: int = setting(30, "Longest time that one query may run", minimum=1)
    sql_max_memory_mb: int = setting(2048, "Memory that one query may use", minimum=16)
    sql_max_queries: int = setting(4, "Queries at the same time; more wait", minimum=1)
    telemetry_port: int = setting(0, "Port of /metrics; 0: off", minimum=0, maximum=65535)
    telemetry_host: str = setting("127.0.0.1", "Address of /metrics")

    @property
    def access_log_group(self) -> str:
        """Consumer group of the access log's own reader."""
        return f"{self.group}-access-log"

    @property
    def embedded(self) -> bool:
        """Whether rows go to the engine inside this process."""
        return self.url.startswith("chdb:")

    def check(self) -> None:
        """Check what only several settings together can tell.

        Raises:
            ConfigError: With the key at fault.
        """
        scheme = self.url.partition(":")[0]
        if scheme not in ("http", "https", "chdb"):
            raise ConfigError("sink.url", "must begin with http://, https:// or chdb:///")
        if self.embedded and not self.url.startswith("chdb:///"):
            raise ConfigError("sink.url", "an embedded engine needs a directory: chdb:///path")
        if self.embedded and self.cluster:
            raise ConfigError("sink.cluster", "the embedded engine is no cluster")
        if self.sql_port and not self.embedded:
            raise ConfigError("sink.sql_port", "a ClickHouse server answers SQL itself")
        self._check_retention()
        for key in ("database", "cluster"):
            name = getattr(self, key)
            if (name or key == "database") and not name.isidentifier():
                raise ConfigError(f"sink.{key}", f"{name!r} is no plain name")

    def _check_retention(self) -> None:
        # Days are summed from hours, and hours from minutes, after they are over: what they are
        # made of, and the record of what is rolled up, must be there for as long.
        if 0 < self.retention_days < 3:
            raise ConfigError("sink.retention_days", "days are rolled up from 3 on; 0 is for ever")
        order = ("retention_days", "retention_hourly_days", "retention_daily_days")
        for finer, coarser in pairwise(order):
            shorter, longer = getattr(self, finer), getattr(self, coarser)
            if longer and not 0 < shorter <= longer:
                raise ConfigError(f"sink.{coarser}", f"{longer} is shorter than sink.{finer}")

    def layout(self) -> Layout:
        """What the declarations need to become statements."""
        return Layout(
            database=self.database,
            cluster=self.cluster,
            retention=(
                ("retention_days", self.retention_days),
                ("retention_hourly_days", self.retention_hourly_days),
                ("retention_daily_days", self.retention_daily_days),
                ("access_log_retention_days", self.access_log_retention_days),
            ),
            fsync=self.fsync,
        )
