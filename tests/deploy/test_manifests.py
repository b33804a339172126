"""The Kubernetes manifests against the real command line, settings and API calls."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from collector.kube.source_api import collections
from schemas.config import KafkaConfig
from streams.config import StreamsConfig
from tests.deploy.deployment import (
    MANIFESTS,
    USES,
    Part,
    command_of,
    kubernetes_objects,
    kubernetes_parts,
    load_configs,
    variables_of,
)

OBJECTS = kubernetes_objects()
PARTS = {command_of(part): part for part in kubernetes_parts()}
WORKERS = [part for command, part in PARTS.items() if command != "schema"]


def container_of(part: Part) -> dict[str, Any]:
    container: dict[str, Any] = part.raw["spec"]["template"]["spec"]["containers"][0]
    return container


def find(kind: str, name: str) -> dict[str, Any]:
    (found,) = [o for o in OBJECTS if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def test_every_part_runs_in_the_kind_that_fits_it() -> None:
    kinds = {command: part.raw["kind"] for command, part in PARTS.items()}
    assert kinds == {
        "schema": "Job",
        "collector": "DaemonSet",
        "kube": "Deployment",
        "streams": "StatefulSet",
        "sink": "Deployment",
        "forwarder": "Deployment",
    }


def test_kustomization_names_every_file() -> None:
    named = set(yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"])
    assert named == {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}


def test_the_forwarder_is_a_component_that_is_off_and_turns_its_topic_on() -> None:
    base = (MANIFESTS / "kustomization.yaml").read_text()
    assert "# components: [forwarder]\n" in base
    assert "components" not in yaml.safe_load(base)
    component = yaml.safe_load((MANIFESTS / "forwarder" / "kustomization.yaml").read_text())
    assert component["kind"] == "Component"
    (patch,) = component["patches"]
    assert find(patch["target"]["kind"], patch["target"]["name"])
    (change,) = yaml.safe_load(patch["patch"])
    assert change["path"] == "/spec/template/spec/containers/0/env/-"
    assert container_of(PARTS["streams"])["env"]
    name, value = change["value"]["name"], change["value"]["value"]
    assert name in variables_of(*USES["streams"])
    assert StreamsConfig.load({}, {name: value}).access_log


def test_everything_lives_in_the_one_namespace() -> None:
    for item in OBJECTS:
        if item["kind"] not in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
            assert item["metadata"]["namespace"] == "podwire"
    assert find("Namespace", "podwire")


def test_the_config_file_has_only_known_sections_and_settings() -> None:
    content = yaml.safe_load(find("ConfigMap", "podwire")["data"]["podwire.yaml"])
    kinds = {kind.SECTION: kind for kinds in USES.values() for kind in kinds}
    assert set(content) <= set(kinds)
    for kind in kinds.values():
        kind.load(content, {})


@pytest.mark.parametrize("part", PARTS.values(), ids=str)
def test_selectors_labels_and_volumes_meet(part: Part) -> None:
    spec = part.raw["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == part.raw["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == command_of(part)
    if "selector" in spec:
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    pod = spec["template"]["spec"]
    mounted = {mount["name"] for mount in container_of(part)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    # Otherwise the variables that Kubernetes makes for services could be taken for settings.
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("part", WORKERS, ids=str)
def test_probes_ask_the_port_that_the_config_opens(part: Part) -> None:
    (port,) = container_of(part)["ports"]
    config: Any = load_configs(part)[0]
    assert port == {"name": "telemetry", "containerPort": config.telemetry_port}
    assert config.telemetry_host == "0.0.0.0"
    probes = {
        name: container_of(part)[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")
    }
    assert probes == {
        "livenessProbe": {"path": "/healthz", "port": "telemetry"},
        "readinessProbe": {"path": "/readyz", "port": "telemetry"},
    }


@pytest.mark.parametrize("part", PARTS.values(), ids=str)
def test_only_the_collector_is_root_and_has_three_capabilities(part: Part) -> None:
    context = container_of(part)["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert "privileged" not in context
    if command_of(part) == "collector":
        capabilities = {"BPF", "NET_ADMIN", "PERFMON", "SYS_PTRACE"}
        assert (part.user, part.capabilities) == ("0:0", capabilities)
        assert part.host_pid
        assert part.raw["spec"]["template"]["spec"]["hostNetwork"] is True
    else:
        assert (part.user, part.capabilities) == ("10001:10001", set())
        assert not part.host_pid
        assert part.raw["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("part", PARTS.values(), ids=str)
def test_host_paths_are_few_and_read_only(part: Part) -> None:
    allowed = {"/sys/kernel/btf", "/sys/fs/cgroup"} if command_of(part) == "collector" else set()
    assert {path for path in part.mounts.values() if path} == allowed
    writable = {
        mount["mountPath"]
        for mount in container_of(part)["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert writable <= {"/tmp"}


def test_only_who_writes_to_clickhouse_knows_its_password() -> None:
    knowing = {c for c, part in PARTS.items() if "PODWIRE_SINK_PASSWORD" in part.environment}
    assert knowing == {"schema", "sink"}


def test_an_image_that_a_node_already_has_is_used() -> None:
    # "latest" would be pulled every time otherwise, which images loaded by hand do not survive.
    (image,) = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["images"]
    for part in PARTS.values():
        assert container_of(part)["image"].partition(":")[0] == image["name"]
        assert container_of(part)["imagePullPolicy"] == "IfNotPresent"


def test_only_the_kube_publisher_has_a_token() -> None:
    for command, part in PARTS.items():
        pod = part.raw["spec"]["template"]["spec"]
        assert pod.get("automountServiceAccountToken", True) is (command == "kube")


def test_rights_are_exactly_what_the_publisher_reads() -> None:
    granted = {
        (group, resource)
        for rule in find("ClusterRole", "podwire-kube")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if rule["verbs"] == ["list", "watch"]
    }
    asked = {
        (collection.group.rpartition("/")[0], collection.kind) for collection in collections(())
    }
    assert granted == asked
    assert len(find("ClusterRole", "podwire-kube")["rules"]) == 4
    binding = find("ClusterRoleBinding", "podwire-kube")
    assert binding["roleRef"]["name"] == "podwire-kube"
    (subject,) = binding["subjects"]
    account = find("ServiceAccount", subject["name"])
    assert account["metadata"]["namespace"] == subject["namespace"]
    assert PARTS["kube"].raw["spec"]["template"]["spec"]["serviceAccountName"] == subject["name"]


def test_workers_keep_their_name_and_are_no_more_than_partitions() -> None:
    streams = PARTS["streams"]
    assert streams.environment["PODWIRE_STREAMS_INSTANCE_ID"] == '"metadata.name"'
    kafka = next(config for config in load_configs(streams) if isinstance(config, KafkaConfig))
    assert streams.raw["spec"]["replicas"] <= kafka.partitions
    headless = find("Service", streams.raw["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"
    labels = streams.raw["spec"]["template"]["metadata"]["labels"]
    assert headless["spec"]["selector"].items() <= labels.items()


def test_the_collector_names_its_node_as_kubernetes_does() -> None:
    assert PARTS["collector"].environment["PODWIRE_COLLECTOR_NODE"] == '"spec.nodeName"'


def test_the_cgroup_path_is_where_the_host_s_is_mounted() -> None:
    config: Any = load_configs(PARTS["collector"])[0]
    assert PARTS["collector"].mounts[config.cgroup_path] == "/sys/fs/cgroup"


def test_scratch_space_is_where_a_read_only_container_may_write() -> None:
    for part in WORKERS:
        assert PurePosixPath("/tmp") in {PurePosixPath(path) for path in part.mounts}
