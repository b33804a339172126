from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from collector.kube import command
from collector.kube.config import KubeConfig
from collector.kube.source_api import ApiSource
from collector.kube.source_file import FileSource
from schemas.errors import ConfigError, TransportError
from tests.collector_kube import objects
from tests.collector_kube.test_credentials import kubeconfig, written

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.kafka import KafkaBroker

_PROGRAM = """
import argparse, logging, sys
from collector.kube import command
from schemas.errors import PodwireError
parser = argparse.ArgumentParser()
parser.add_argument("--config")
command.add_arguments(parser)
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
try:
    sys.exit(command.run(parser.parse_args()))
except PodwireError as error:
    sys.exit(f"error: {error}")
"""


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    command.add_arguments(parser)
    return parser.parse_args(words)


def config(**values: Any) -> KubeConfig:
    return KubeConfig.load(environment={}, options=values)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--from-file", "--kubeconfig", "--namespaces", "--bootstrap-servers"):
        assert option in text
    assert command.HELP


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = str(objects.CLUSTER_FILE)
    assert isinstance(command.create_source(config(from_file=file)), FileSource)
    with pytest.raises(ConfigError, match="no Kubernetes found"):
        command.create_source(config())
    content = kubeconfig(cluster={"server": "http://127.0.0.1:1"})
    path = str(written(tmp_path, content))
    assert isinstance(command.create_source(config(kubeconfig=path)), ApiSource)
    monkeypatch.setenv("KUBECONFIG", path)
    assert isinstance(command.create_source(config(source="api")), ApiSource)
    with pytest.raises(ConfigError, match=r"kube.from_file: is needed"):
        command.create_source(config(source="file"))
    with pytest.raises(ConfigError, match=r"kube.from_file: has no use"):
        command.create_source(config(source="api", from_file=file))


def test_an_unreadable_file_is_refused_before_anything_else(tmp_path: Path) -> None:
    missing = str(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"absent.json cannot be read: No such file"):
        command.run(arguments("--from-file", missing, "--bootstrap-servers", "127.0.0.1:1"))


def test_a_telemetry_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(
            ConfigError, match=r"telemetry_port: .* cannot be used: Address already"
        ):
            command.run(
                arguments("--from-file", str(objects.CLUSTER_FILE), "--telemetry-port", port)
            )


def test_no_broker_is_one_line() -> None:
    with pytest.raises(TransportError) as caught:
        command.run(
            arguments(
                *("--from-file", str(objects.CLUSTER_FILE), "--kafka-timeout-s", "1"),
                *("--bootstrap-servers", "127.0.0.1:1"),
            )
        )
    assert str(caught.value).startswith("no usable Kafka broker at 127.0.0.1:1: ")
    assert "\n" not in str(caught.value)


def test_the_process_publishes_follows_and_ends_in_order(
    new_kafka_broker: Any, tmp_path: Path
) -> None:
    broker: KafkaBroker = new_kafka_broker()
    path = tmp_path / "kube.yaml"
    path.write_text(yaml.safe_dump(objects.cluster()))
    program = [
        *(sys.executable, "-c", _PROGRAM, "--from-file", str(path)),
        *("--bootstrap-servers", broker.bootstrap_servers),
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            line = ""
            while "full state" not in line:
                line = process.stdout.readline()
                assert line
            # Two of the seven pods ended in 2024 and are not worth a record.
            assert line == (
                "published the full state: 5 pods, 2 services, 1 endpointslices, 1 nodes\n"
            )
            fresh = tmp_path / "fresh"
            fresh.write_text(json.dumps(objects.kubectl_list(objects.node("n9"))))
            os.replace(fresh, path)
            assert process.stdout.readline().endswith("changed and was read again\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()
    pods = broker.consume_all("podwire.k8s.pods.v1")
    assert len({message.key() for message in pods}) == 5
