"""The compose file against the real command line, settings, Dockerfile and Kafka."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from tests.deploy.deployment import (
    ROOT,
    compose,
    compose_parts,
    dockerfile,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kafka import KafkaBroker

SERVICES = compose()["services"]


def test_the_shape_is_that_of_a_cluster() -> None:
    commands = sorted(part.arguments[0] for part in compose_parts())
    assert commands == ["collector", "forwarder", "kube", "schema", "sink", "streams", "streams"]
    assert [name for name, each in SERVICES.items() if "profiles" in each] == ["forwarder"]
    assert {"kafka", "clickhouse"} < set(SERVICES)


def test_workers_have_names_of_their_own() -> None:
    names = [
        part.environment["PODWIRE_STREAMS_INSTANCE_ID"]
        for part in compose_parts()
        if part.arguments == ["streams"]
    ]
    assert len(set(names)) == 2


def test_parts_wait_for_the_schema_and_the_schema_for_its_servers() -> None:
    for part in compose_parts():
        needed = part.raw["depends_on"]
        if part.arguments[0] == "schema":
            assert set(needed) == {"kafka", "clickhouse"}
            assert all(SERVICES[name]["healthcheck"] for name in needed)
        else:
            assert needed == {"schema": {"condition": "service_completed_successfully"}}


def test_addresses_name_services_and_their_ports() -> None:
    kafka = SERVICES["kafka"]["environment"]
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka:9092"
    for part in compose_parts():
        assert part.environment["PODWIRE_KAFKA_BOOTSTRAP_SERVERS"] == "kafka:9092"
    clickhouse = SERVICES["clickhouse"]
    user = clickhouse["environment"]["CLICKHOUSE_USER"]
    for part in compose_parts():
        if part.arguments[0] in ("sink", "schema"):
            assert part.environment["PODWIRE_SINK_URL"] == f"http://{user}@clickhouse:8123"
            password = clickhouse["environment"]["CLICKHOUSE_PASSWORD"]
            assert part.environment["PODWIRE_SINK_PASSWORD"] == password


def test_partitions_are_the_same_everywhere() -> None:
    assert {part.environment["PODWIRE_KAFKA_PARTITIONS"] for part in compose_parts()} == {"4"}


def test_only_loopback_is_published() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        assert not service.get("privileged")
        assert service.get("network_mode") != "host"


def test_only_the_collector_is_root_and_has_two_capabilities() -> None:
    for part in compose_parts():
        assert part.raw["cap_drop"] == ["ALL"]
        assert part.raw["read_only"] is True
        if part.arguments == ["collector"]:
            assert (part.user, part.capabilities, part.host_pid) == (
                "0:0",
                {"BPF", "PERFMON", "SYS_PTRACE"},
                True,
            )
        else:
            assert (part.user, part.capabilities, part.host_pid) == ("", set(), False)


def test_named_volumes_are_declared_and_host_paths_exist() -> None:
    declared = set(compose()["volumes"])
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_dir()
            else:
                assert source in declared or source.startswith("/sys/")


def test_the_example_of_its_first_lines_uses_the_port_and_the_user() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    shown = re.search(r"http://127\.0\.0\.1:(\d+)/\?user=(\w+)&password=(\w+)", text)
    assert shown is not None
    port, user, password = shown.groups()
    assert SERVICES["clickhouse"]["ports"] == [f"127.0.0.1:{port}:8123"]
    environment = SERVICES["clickhouse"]["environment"]
    assert (environment["CLICKHOUSE_USER"], environment["CLICKHOUSE_PASSWORD"]) == (user, password)


def test_build_uses_the_dockerfile_of_the_repository() -> None:
    for part in compose_parts():
        build = part.raw["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert ("ENTRYPOINT", '["podwire"]') in dockerfile()


@pytest.mark.slow
@pytest.mark.kafka
def test_kafka_starts_with_these_settings_and_knows_every_name(
    new_kafka_broker: Callable[..., KafkaBroker],
) -> None:
    """The image makes KAFKA_A_B the property a.b; Kafka ignores names that it does not know."""
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"]["environment"].items()
        if name != "KAFKA_HEAP_OPTS"
    }
    places = ("listeners", "advertised.listeners", "log.dirs", "controller.quorum.voters")
    broker = new_kafka_broker(
        settings={name: value for name, value in properties.items() if name not in places}
    )
    assert _broker_settings(broker).keys() >= properties.keys()


def _broker_settings(broker: KafkaBroker) -> dict[str, Any]:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    resource = ConfigResource(ResourceType.BROKER, "1")
    found: dict[str, Any] = admin.describe_configs([resource])[resource].result(timeout=10)
    return found
