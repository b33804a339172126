from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from schemas.topics import EVENTS

if TYPE_CHECKING:
    from tests.support.kafka import KafkaBroker

ROOT = Path(__file__).parents[2]
CONNECTIONS = 25_000  # both ends are on this machine: the collector knows 50,000
PER_PROCESS = 5_000
LIMIT_MB = 150

_HOLDER = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener, kept = socket.create_server((sys.argv[1], 0), backlog=64), []
for _ in range(int(sys.argv[2])):
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.send(b"x")
    server.recv(1)
    kept.append((client, server))
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.bpf
@pytest.mark.slow
def test_fifty_thousand_open_connections_fit(kafka_broker: KafkaBroker) -> None:
    if EVENTS.name not in kafka_broker.topics():
        kafka_broker.create_topic(EVENTS.name, partitions=1)
    servers = kafka_broker.bootstrap_servers
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "deploy.cli", "collector", "--telemetry-port", "0"]
        collector = subprocess.Popen(
            [*command, "--bootstrap-servers", servers],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(collector.kill)
        assert collector.stderr is not None
        # Before that it may say which figures this kernel cannot give.
        assert any("watching" in line for line in collector.stderr)
        for number in range(CONNECTIONS // PER_PROCESS):
            holder = subprocess.Popen(
                [sys.executable, "-c", _HOLDER, f"127.0.0.{2 + number}", str(PER_PROCESS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
        time.sleep(2.5)  # two batches
        resident = _resident_mb(collector.pid)
        collector.send_signal(signal.SIGTERM)
        collector.communicate(timeout=60)
        assert collector.returncode == 0
        print(f"resident: {resident} MB")
        assert resident < LIMIT_MB


def _resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024
