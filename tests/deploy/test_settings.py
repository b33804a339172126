from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
import yaml

from collector.config import CollectorConfig
from collector.kube.config import KubeConfig
from deploy.local.ports import free_ports, is_open, require_free, wait_open
from deploy.local.settings import Layout, LocalOptions, part_environment, sections, write_config
from schemas.config import KafkaConfig, load_file
from schemas.errors import ConfigError
from sink.config import SinkConfig
from streams.config import StreamsConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.choose(LocalOptions(tmp_path / "data", http_port=0))


def test_every_part_reads_the_written_file(tmp_path: Path, layout: Layout) -> None:
    options = LocalOptions(tmp_path / "data", node="n1", http_port=0)
    write_config(layout, sections(options, layout, "life-1"))
    file = load_file(layout.config_file)
    kafka = KafkaConfig.load(file, {})
    collector = CollectorConfig.load(file, {})
    streams = StreamsConfig.load(file, {})
    sink = SinkConfig.load(file, {})
    KubeConfig.load(file, {})
    assert kafka.bootstrap_servers == f"127.0.0.1:{layout.broker_port}"
    assert kafka.partitions == 1
    assert collector.node == "n1"
    assert collector.excluded_run == os.getpid()
    assert (streams.broker_epoch, streams.host_processes) == ("life-1", "process")
    assert sink.url == f"chdb://{tmp_path}/data/clickhouse"
    assert sink.sql_port == layout.http_port
    assert (streams.access_log, sink.access_log) == (True, True)
    assert collector.telemetry_port == layout.telemetry["collector"]
    assert stat.S_IMODE(layout.config_file.stat().st_mode) == 0o600


def test_the_users_settings_stay_unless_the_runner_must_decide(
    tmp_path: Path, layout: Layout
) -> None:
    base = {
        "collector": {"excluded_run": 0},
        "streams": {"grace_s": 5, "host_processes": "node", "access_log": False},
        "sink": {"access_log": False},
        "kafka": {"bootstrap_servers": "elsewhere:9092", "partitions": 12},
    }
    base["scope"] = {"exclude": [{"ports": [80]}]}
    config = tmp_path / "mine.yaml"
    content = sections(LocalOptions(tmp_path, config=config, base=base), layout, "life-1")
    # Where it may be changed while all runs.
    assert "scope" not in content
    assert content["collector"]["scope_file"] == content["streams"]["scope_file"] == str(config)
    assert content["streams"]["grace_s"] == 5
    assert content["streams"]["host_processes"] == "node"
    assert (content["streams"]["access_log"], content["sink"]["access_log"]) == (False, False)
    assert content["collector"]["excluded_run"] == 0
    assert content["kafka"]["bootstrap_servers"] == layout.bootstrap_servers
    assert content["kafka"]["partitions"] == 1
    assert base["kafka"]["partitions"] == 12


def test_a_durable_broker_keeps_the_users_kafka_settings(tmp_path: Path) -> None:
    base = {"kafka": {"partitions": 12, "security_protocol": "SSL"}}
    options = LocalOptions(tmp_path, broker="kafka:9092", http_port=0, base=base)
    layout = Layout.choose(options)
    content = sections(options, layout, "")
    assert layout.broker_port == 0
    assert content["kafka"]["bootstrap_servers"] == "kafka:9092"
    assert content["kafka"]["partitions"] == 12
    assert content["kafka"]["security_protocol"] == "SSL"


def test_with_kubernetes_objects_host_processes_belong_to_the_node(
    tmp_path: Path, layout: Layout
) -> None:
    content = sections(LocalOptions(tmp_path, kube=tmp_path / "kube.json"), layout, "")
    assert "host_processes" not in content["streams"]


def test_variables_do_not_undo_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODWIRE_SINK_URL", "http://elsewhere")
    monkeypatch.setenv("PODWIRE_SINK_PASSWORD", "x")
    environment = part_environment({"sink": {"url": "chdb:///here"}})
    assert "PODWIRE_SINK_URL" not in environment
    assert environment["PODWIRE_SINK_PASSWORD"] == "x"


def test_a_taken_http_port_names_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--http-port: port {port} cannot be used"):
            Layout.choose(LocalOptions(tmp_path, http_port=port))
        assert is_open(port)
        assert wait_open(port, 1.0)
    assert not is_open(port)
    assert not wait_open(port, 0.0)
    assert require_free(port, "--http-port") == port


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_an_impossible_data_directory_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--data: .* cannot be made"):
        Layout.choose(LocalOptions(tmp_path / "file" / "data", http_port=0))


def test_the_file_is_readable_yaml_with_a_hint(layout: Layout) -> None:
    write_config(layout, {"kafka": {"partitions": 1}})
    text = layout.config_file.read_text()
    assert text.startswith("# Written by `podwire local`")
    assert yaml.safe_load(text) == {"kafka": {"partitions": 1}}
