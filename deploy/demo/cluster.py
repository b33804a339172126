"""A small Kubernetes cluster on one machine: pods are network namespaces plus cgroups.

One more namespace holds the bridge that joins the pods, so their addresses and traffic exist
nowhere else. Cgroups carry the names that a kubelet gives them, and `Cluster.kube_list` is what
``kubectl get pods,services,endpointslices,nodes -A -o json`` would print. Everything is named after
a tag; whatever a crashed run with the same tag left behind is removed first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deploy.demo.kubernetes import Pod, Service, Workload, kube_list, plan
from schemas.errors import ConfigError, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Cluster", "cgroup2_mount"]

NETNS_DIRECTORY: Final = Path("/run/netns")
TOOLS: Final = ("ip", "nsenter", "nft", "ss", "sysctl")
GRACE_S: Final = 1.0
LOCK_DIRECTORY: Final = Path("/run")

# $1 cgroup, $2 network namespace, then the command. The shell enters both and becomes the command,
# so the process id that we know is the one in the pod.
ENTER: Final = 'echo $$ >"$1/cgroup.procs" && ns=$2 && shift 2 && exec nsenter --net="$ns" "$@"'


def cgroup2_mount() -> Path:
    """Return where the cgroup v2 hierarchy is mounted; on hybrid systems not the usual place.

    Raises:
        UnsupportedFeature: If there is none.
    """
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise UnsupportedFeature("demo cluster", "no cgroup v2 hierarchy is mounted")


class Cluster:
    """Pods, the wires between them, and the processes started in them.

    Use as a context manager: entering builds, leaving removes everything.

    Args:
        tag: Short name; part of every namespace and cgroup.
        workloads: What runs, and behind which services.
        node: Name of the one node.
    """

    def __init__(self, tag: str, workloads: Sequence[Workload], node: str) -> None:
        self.tag = tag
        self.node = node
        self.pods, self.services = plan(tag, workloads, node)
        self._prefix = f"podwire-{tag}-"
        self._node_netns = f"{self._prefix}node"
        self._cgroup_root = cgroup2_mount() / f"podwire-{tag}.slice"
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise UnsupportedFeature("demo cluster", f"not installed: {', '.join(missing)}")
        if os.geteuid() != 0:
            raise UnsupportedFeature("demo cluster", "network namespaces need root")
        self._lock_tag()
        try:
            self.remove()
            self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def _lock_tag(self) -> None:
        # Held until the process ends, so that two runs never take each other for a crashed one.
        path = LOCK_DIRECTORY / f"podwire-{self.tag}.lock"
        self._lock = path.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                "demo cluster", f"another {self.tag} cluster is running on this machine"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
        self._lock.close()

    def pods_of(self, workload: str) -> list[Pod]:
        """Pods of a workload, by its name."""
        return [pod for pod in self.pods if pod.workload.name == workload]

    def service(self, name: str) -> Service:
        """The service of a workload, by its name."""
        return next(service for service in self.services if service.name == name)

    def kube_list(self) -> dict[str, Any]:
        """What ``kubectl get pods,services,endpointslices,nodes -A -o json`` would print."""
        return kube_list(self.pods, self.services, self.node)

    def start(self, pod: Pod, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a pod; it ends with the cluster at the latest.

        Args:
            pod: Where.
            argv: Command.
            options: As for `subprocess.Popen`.
        """
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(
            ["sh", "-c", ENTER, "sh", str(self.cgroup(pod)), self._netns_path(pod), *argv],
            start_new_session=True,
            **options,
        )
        self._processes.append(process)
        return process

    def run(self, pod: Pod, argv: Sequence[str], timeout_s: float = 30.0) -> str:
        """Run a command in a pod to its end and return its output, whatever its exit code."""
        process = self.start(
            pod, argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return str(output)

    def wait_listening(self, pod: Pod, port: int, timeout_s: float = 10.0) -> bool:
        """Wait until something in the pod listens on the port, without connecting to it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.run(pod, ["ss", "-Hltn", f"sport = :{port}"]).strip():
                return True
            time.sleep(0.05)
        return False

    def cgroup(self, pod: Pod) -> Path:
        """Directory of the pod's container in the cgroup v2 hierarchy."""
        uid = pod.uid.replace("-", "_")
        return (
            self._cgroup_root
            / "kubepods.slice"
            / "kubepods-burstable.slice"
            / f"kubepods-burstable-pod{uid}.slice"
            / f"cri-containerd-{pod.container_id}.scope"
        )

    def route_services(self, pod: Pod) -> None:
        """Let the pod reach services by their cluster addresses, as kube-proxy does with NAT."""
        rules = []
        for service in self.services:
            backends = self.pods_of(service.name)
            for version, address in (("ip", service.ipv4), ("ip6", service.ipv6)):
                targets = [one.ipv4 if version == "ip" else one.ipv6 for one in backends]
                choices = ", ".join(
                    f"{index} : {target} . {service.target_port}"
                    for index, target in enumerate(targets)
                )
                rules.append(
                    f"add rule inet podwire output {version} daddr {address} "
                    f"tcp dport {service.port} "
                    f"dnat {version} to numgen inc mod {len(targets)} map {{ {choices} }}"
                )
        script = [
            "add table inet podwire",
            "add chain inet podwire output { type nat hook output priority -100; }",
            *rules,
        ]
        self._in_netns(pod.netns(self._prefix), ["nft", "-f", "-"], "\n".join(script))

    def remove(self) -> None:
        """Remove processes, namespaces and cgroups of this tag, also those of a crashed run."""
        self._end_processes()
        if NETNS_DIRECTORY.is_dir():
            for path in sorted(NETNS_DIRECTORY.glob(f"{self._prefix}*")):
                subprocess.run(["ip", "netns", "delete", path.name], check=False)
        deadline = time.monotonic() + 5.0
        while self._cgroup_root.exists() and not _remove_tree(self._cgroup_root):
            # A killed process leaves its cgroup a moment after it is gone.
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)

    def _end_processes(self) -> None:
        # First in order, so that servers collect their own children, then whatever is left.
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and self._pids():
            for process in self._processes:
                process.poll()
            time.sleep(0.02)
        for pid in self._pids():
            _kill(pid)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _pids(self) -> list[int]:
        if not self._cgroup_root.is_dir():
            return []
        return [
            int(pid)
            for file in self._cgroup_root.rglob("cgroup.procs")
            for pid in file.read_text().split()
        ]

    def _netns_path(self, pod: Pod) -> str:
        return str(NETNS_DIRECTORY / pod.netns(self._prefix))

    def _build(self) -> None:
        node = self._node_netns
        names = [node, *(pod.netns(self._prefix) for pod in self.pods)]
        _ip("\n".join(f"netns add {name}" for name in names))
        for name in names:
            # Without duplicate address detection IPv6 addresses can be used at once.
            quiet = "net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0"
            self._in_netns(name, ["sysctl", "-qw", *quiet.split()])
        lines = [
            "link add br0 type bridge",
            "link set br0 up",
            f"addr add {self.pods[0].gateway_ipv4}/24 dev br0",
            f"addr add {self.pods[0].gateway_ipv6}/64 dev br0 nodad",
            "link set lo up",
        ]
        for index, pod in enumerate(self.pods):
            lines += [
                f"link add veth{index} type veth peer name eth0 netns {pod.netns(self._prefix)}",
                f"link set veth{index} master br0 up",
            ]
        _ip("\n".join(lines), node)
        for pod in self.pods:
            _ip(
                f"link set lo up\nlink set eth0 up\naddr add {pod.ipv4}/24 dev eth0\n"
                f"addr add {pod.ipv6}/64 dev eth0 nodad\n"
                f"route add default via {pod.gateway_ipv4}\n"
                f"-6 route add default via {pod.gateway_ipv6}",
                pod.netns(self._prefix),
            )
            try:
                self.cgroup(pod).mkdir(parents=True)
            except OSError as error:
                raise UnsupportedFeature(
                    "demo cluster", f"cgroups cannot be made: {error}"
                ) from error

    def _in_netns(self, name: str, argv: Sequence[str], text: str | None = None) -> None:
        _checked(["ip", "netns", "exec", name, *argv], text)


def _ip(script: str, netns: str | None = None) -> None:
    # Addresses of either family in one batch; -6 lines are told apart by their own option.
    plain = "\n".join(line for line in script.splitlines() if not line.startswith("-6 "))
    six = "\n".join(line[3:] for line in script.splitlines() if line.startswith("-6 "))
    place = ["-netns", netns] if netns else []
    _checked(["ip", *place, "-batch", "-"], plain)
    if six:
        _checked(["ip", *place, "-6", "-batch", "-"], six)


def _checked(argv: Sequence[str], text: str | None) -> None:
    answer = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = " | ".join((answer.stderr or answer.stdout).strip().splitlines()[:2])
        raise UnsupportedFeature("demo cluster", f"{argv[0]}: {reason}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # gone by itself meanwhile


def _remove_tree(root: Path) -> bool:
    for directory in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        try:
            directory.rmdir()
        except OSError:
            return False
    try:
        root.rmdir()
    except OSError:
        return False
    return True
