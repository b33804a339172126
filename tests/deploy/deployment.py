"""What the compose file and the manifests say, in one form that tests can ask."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import yaml

from collector.config import CollectorConfig
from collector.kube.config import KubeConfig
from schemas.config import Config, KafkaConfig
from sink.config import SinkConfig
from sink.oap.config import ForwarderConfig
from streams.config import StreamsConfig

__all__ = [
    "ROOT",
    "USES",
    "Part",
    "command_of",
    "compose_parts",
    "dockerfile",
    "kubernetes_objects",
    "kubernetes_parts",
    "load_configs",
    "variables_of",
]

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = ROOT / "docker-compose.yml"
MANIFESTS: Final = ROOT / "deploy" / "kubernetes"
DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"

USES: Final[dict[str, tuple[type[Config], ...]]] = {
    "collector": (CollectorConfig, KafkaConfig),
    "kube": (KubeConfig, KafkaConfig),
    "streams": (StreamsConfig, KafkaConfig),
    "sink": (SinkConfig, KafkaConfig),
    "forwarder": (ForwarderConfig, KafkaConfig),
    "schema": (SinkConfig, KafkaConfig),
}
"""Subcommand to the configurations it loads; the first is its own."""


@dataclass
class Part:
    """One container that runs podwire."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    """Files that are mounted from the deployment itself: path to content."""
    mounts: dict[str, str] = field(default_factory=dict)
    """Path in the container to path on the host."""
    capabilities: set[str] = field(default_factory=set)
    user: str = ""
    host_pid: bool = False
    grace_s: float = 10.0
    raw: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def command_of(part: Part) -> str:
    """The subcommand it runs."""
    return next(argument for argument in part.arguments if argument in USES)


def variables_of(*configs: type[Config]) -> set[str]:
    """The variables that these configurations read."""
    return {
        f"PODWIRE_{config.SECTION}_{item.name}".upper()
        for config in configs
        for item in fields(config)
    }


def load_configs(part: Part) -> list[Config]:
    """Load what the part would load, from its own file and environment."""
    file: dict[str, Any] = {}
    if "--config" in part.arguments:
        file = yaml.safe_load(part.files[part.arguments[part.arguments.index("--config") + 1]])
    return [kind.load(file, part.environment) for kind in USES[command_of(part)]]


def compose() -> dict[str, Any]:
    """The compose file, variables replaced by their defaults."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    assert "${" not in text, "variables need a default"
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def compose_parts() -> list[Part]:
    """Every service that runs the podwire image."""
    parts = []
    for name, service in compose()["services"].items():
        if "build" not in service:
            continue
        mounts = {}
        for volume in service.get("volumes", ()):
            host, inside, *_ = volume.split(":")
            mounts[inside] = host
        parts.append(
            Part(
                name=f"compose/{name}",
                arguments=service["command"],
                environment=service.get("environment", {}),
                mounts=mounts,
                capabilities=set(service.get("cap_add", ())),
                user=service.get("user", ""),
                host_pid=service.get("pid") == "host",
                grace_s=float(service["stop_grace_period"].removesuffix("s")),
                raw=service,
            )
        )
    return parts


def kubernetes_objects() -> list[dict[str, Any]]:
    """Every object of the manifests that the kustomization and its components name, in order."""
    return [
        item
        for file in (MANIFESTS / "kustomization.yaml", *MANIFESTS.glob("*/kustomization.yaml"))
        for name in yaml.safe_load(file.read_text())["resources"]
        for item in yaml.safe_load_all((file.parent / name).read_text())
    ]


def kubernetes_parts() -> list[Part]:
    """Every container of the manifests."""
    objects = {(item["kind"], item["metadata"]["name"]): item for item in kubernetes_objects()}
    parts = []
    for (kind, name), item in objects.items():
        template = item.get("spec", {}).get("template")
        if template is None:
            continue
        spec = template["spec"]
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        files, mounts = {}, {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "configMap" in volume:
                content = objects["ConfigMap", volume["configMap"]["name"]]["data"]
                files |= {f"{mount['mountPath']}/{key}": text for key, text in content.items()}
            mounts[mount["mountPath"]] = volume.get("hostPath", {}).get("path", "")
        environment = {}
        for source in container.get("envFrom", ()):
            environment |= objects["Secret", source["secretRef"]["name"]]["stringData"]
        for variable in container.get("env", ()):
            environment[variable["name"]] = variable.get("value") or json.dumps(
                variable["valueFrom"]["fieldRef"]["fieldPath"]
            )
        context = spec.get("securityContext", {}) | container["securityContext"]
        parts.append(
            Part(
                name=f"{kind}/{name}",
                arguments=container["args"],
                environment=environment,
                files=files,
                mounts=mounts,
                capabilities=set(context["capabilities"].get("add", ())),
                user=f"{context['runAsUser']}:{context['runAsGroup']}",
                host_pid=spec.get("hostPID", False),
                grace_s=spec.get("terminationGracePeriodSeconds", 30),
                raw=item,
            )
        )
    return parts


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile's last stage and the build stage: (name, arguments)."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]
