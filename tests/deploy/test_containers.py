"""Every container's command: checked against the settings, then run for real on this machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from collector.config import CollectorConfig
from deploy.cli import create_parser
from schemas.config import SECTIONS, KafkaConfig
from schemas.topics import TOPICS
from sink.views import VIEWS
from tests.deploy.deployment import (
    USES,
    Part,
    command_of,
    compose_parts,
    dockerfile,
    kubernetes_parts,
    load_configs,
    variables_of,
)
from tests.deploy.running import PODWIRE, run_once, running
from tests.support.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PARTS = [*compose_parts(), *kubernetes_parts()]
every_part = pytest.mark.parametrize("part", PARTS, ids=str)


def parts_running(*commands: str) -> pytest.MarkDecorator:
    chosen = [part for part in PARTS if command_of(part) in commands]
    return pytest.mark.parametrize("part", chosen, ids=str)


def test_a_file_may_have_a_section_for_every_part() -> None:
    assert {kind.SECTION for kinds in USES.values() for kind in kinds} == set(SECTIONS)


@every_part
def test_the_command_line_is_accepted(part: Part) -> None:
    arguments = create_parser().parse_args(part.arguments)
    assert arguments.command == command_of(part)


@every_part
def test_every_variable_is_a_setting_of_the_command(part: Part) -> None:
    known = variables_of(*USES[command_of(part)])
    # One secret serves all parts of a namespace, each reads what is its own.
    shared = {name for name in part.environment if name.endswith("_PASSWORD")}
    assert shared <= variables_of(*(kind for kinds in USES.values() for kind in kinds))
    assert set(part.environment) - shared <= known


@every_part
def test_the_configuration_is_valid(part: Part) -> None:
    for config in load_configs(part):
        check = getattr(config, "check", None)
        if check is not None:
            check()


@every_part
def test_files_of_the_command_line_are_mounted(part: Part) -> None:
    for argument in part.arguments:
        if argument.startswith("/"):
            folder = argument.rpartition("/")[0]
            assert argument in part.files or folder in part.mounts, argument


@every_part
def test_the_telemetry_port_is_the_one_that_the_image_exposes(part: Part) -> None:
    if command_of(part) == "schema":
        return
    config: Any = load_configs(part)[0]
    assert ("EXPOSE", str(config.telemetry_port)) in dockerfile()


@every_part
def test_there_is_time_to_flush(part: Part) -> None:
    for config in load_configs(part):
        if isinstance(config, CollectorConfig):
            assert part.grace_s > config.stop_timeout_s + 5


@every_part
def test_the_image_s_user_is_the_one_of_the_deployment(part: Part) -> None:
    image_user = dict(dockerfile())["USER"]
    assert (part.user or image_user) == ("0:0" if command_of(part) == "collector" else image_user)


@pytest.mark.parametrize("command", sorted(USES))
def test_help_lists_every_setting(command: str) -> None:
    arguments = [command, "apply", "--help"] if command == "schema" else [command, "--help"]
    answer = subprocess.run([*PODWIRE, *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for kind in USES[command]:
        for item in fields(kind):
            assert f"--{item.name.replace('_', '-')} " in answer.stdout


@pytest.fixture
def broker(new_kafka_broker: Callable[..., KafkaBroker]) -> KafkaBroker:
    """A broker without topics."""
    return new_kafka_broker()


@pytest.fixture(scope="module")
def prepared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker with the project's topics, as ``podwire schema apply`` leaves it."""
    with KafkaBroker.started(tmp_path_factory.mktemp("kafka")) as broker:
        broker.create_topics(partitions=4)
        yield broker


@pytest.fixture
def kafka(prepared_broker: KafkaBroker) -> dict[str, str]:
    """That broker as a setting."""
    return {"PODWIRE_KAFKA_BOOTSTRAP_SERVERS": prepared_broker.bootstrap_servers}


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.clickhouse
@parts_running("schema")
def test_schema_makes_topics_and_tables_and_may_run_twice(
    part: Part, broker: KafkaBroker, tmp_path: Path
) -> None:
    places = {
        "PODWIRE_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "PODWIRE_KAFKA_REPLICATION_FACTOR": 1,  # there is one broker here
        "PODWIRE_SINK_URL": f"chdb://{tmp_path}/clickhouse",
    }
    for _ in range(2):
        answer = run_once(part, tmp_path, **places)
        assert answer.returncode == 0, answer.stderr
    kafka = next(config for config in load_configs(part) if isinstance(config, KafkaConfig))
    assert broker.topics() == {
        topic.name: kafka.partitions if topic.partitions == "events" else 1 for topic in TOPICS
    }
    assert {view.name for view in VIEWS} <= tables_in(tmp_path / "clickhouse")


def tables_in(directory: Path) -> set[str]:
    """What the embedded engine finds; in a process of its own, because it lives once in each."""
    code = "import chdb.session, sys; print(chdb.session.Session(sys.argv[1]).query(sys.argv[2]))"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(directory), "SHOW TABLES FROM podwire FORMAT TSV"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


@pytest.mark.slow
@pytest.mark.kafka
@parts_running("kube")
def test_kube_starts_answers_probes_and_stops(
    part: Part, kafka: dict[str, str], tmp_path: Path
) -> None:
    if "--from-file" not in part.arguments:  # there is no API server here
        objects = tmp_path / "kubernetes.json"
        objects.write_text('{"apiVersion": "v1", "kind": "List", "items": []}')
        kafka |= {"PODWIRE_KUBE_FROM_FILE": str(objects)}
    start_and_stop(part, tmp_path, kafka)


@pytest.mark.slow
@pytest.mark.bpf
@pytest.mark.kafka
@parts_running("collector")
def test_collector_starts_answers_probes_and_stops(
    part: Part, kafka: dict[str, str], tmp_path: Path
) -> None:
    """With exactly the capabilities that the deployment grants."""
    start_and_stop(part, tmp_path, kafka | {"PODWIRE_COLLECTOR_CGROUP_PATH": "/sys/fs/cgroup"})


@pytest.mark.slow
@pytest.mark.kafka
@parts_running("forwarder")
def test_forwarder_starts_answers_probes_and_stops(
    part: Part, kafka: dict[str, str], tmp_path: Path
) -> None:
    """Without an OAP too: what it has to send waits."""
    start_and_stop(part, tmp_path, kafka | {"PODWIRE_FORWARDER_ADDRESSES": "127.0.0.1:9"})


@pytest.mark.slow
@pytest.mark.kafka
@parts_running("streams")
def test_streams_starts_answers_probes_and_stops(
    part: Part, kafka: dict[str, str], tmp_path: Path
) -> None:
    start_and_stop(part, tmp_path, kafka)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.clickhouse
@parts_running("sink")
def test_sink_starts_answers_probes_and_stops(
    part: Part, kafka: dict[str, str], tmp_path: Path
) -> None:
    start_and_stop(part, tmp_path, kafka | {"PODWIRE_SINK_URL": f"chdb://{tmp_path}/clickhouse"})


def start_and_stop(part: Part, directory: Path, places: dict[str, str]) -> None:
    """Ready within the start period, healthy, and down in order within the grace."""
    with running(part, directory, **places) as started:
        started.wait_ready()
        assert started.get("/healthz") == 200
        assert started.get("/metrics") == 200
        if "healthcheck" in part.raw:
            _, *command = part.raw["healthcheck"]["test"]
            command = [word.replace(":9464/", f":{started.port}/") for word in command]
            subprocess.run([sys.executable, *command[1:]], check=True, timeout=10)
        assert started.stop(part.grace_s) == 0, started.log.read_text()
    assert "Traceback" not in started.log.read_text()
