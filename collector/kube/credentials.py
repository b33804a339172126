"""Where the API server is and how to prove who we are: service account or kubeconfig."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Credentials", "default_kubeconfig", "in_cluster", "is_in_cluster", "read_kubeconfig"]

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_UNSUPPORTED_USER: Final = {
    "exec": "credential plugins (exec) are not supported; use a token or a client certificate",
    "auth-provider": "auth-provider is not supported; use a token or a client certificate",
    "username": "basic authentication is not supported; use a token or a client certificate",
}


@dataclass(frozen=True)
class Credentials:
    """A server and the means to talk to it.

    Files are read each time they are needed: service account tokens live for an hour, and
    certificates are rotated under the same name.
    """

    server: str
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca: bytes | Path | None = field(default=None, repr=False)
    certificate: bytes | Path | None = field(default=None, repr=False)
    key: bytes | Path | None = field(default=None, repr=False)
    is_insecure: bool = False
    server_name: str = ""

    def headers(self) -> dict[str, str]:
        """The authorization header for the next request.

        Raises:
            ConfigError: If the token file cannot be read.
        """
        token = self.token
        if self.token_file is not None:
            token = _read(self.token_file).decode("ascii", "replace").strip()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS settings for a new connection; None for a plain HTTP server.

        Raises:
            ConfigError: If a certificate or key is missing or unusable.
        """
        if not self.server.startswith("https://"):
            return None
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                pem = _content(self.ca).decode("ascii", "replace")
                context = ssl.create_default_context(cadata=pem)
            if self.certificate is not None and self.key is not None:
                _load_pair(context, _content(self.certificate), _content(self.key))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError("kube.kubeconfig", f"unusable certificate or key: {error}") from error
        if self.is_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def is_in_cluster(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs in a pod with a service account."""
    environment = os.environ if environment is None else environment
    return bool(environment.get("KUBERNETES_SERVICE_HOST")) and (_ACCOUNT / "token").exists()


def in_cluster(
    environment: Mapping[str, str] | None = None, account: Path = _ACCOUNT
) -> Credentials:
    """The pod's service account.

    Raises:
        ConfigError: If this process does not run in a pod.
    """
    environment = os.environ if environment is None else environment
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise ConfigError("kube.source", "not in a cluster: KUBERNETES_SERVICE_HOST is not set")
    if ":" in host:
        host = f"[{host}]"
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    return Credentials(
        server=f"https://{host}:{port}", token_file=account / "token", ca=account / "ca.crt"
    )


def default_kubeconfig(environment: Mapping[str, str] | None = None) -> list[Path]:
    """The files kubectl would read: ``KUBECONFIG``, else ``~/.kube/config``; those that exist."""
    environment = os.environ if environment is None else environment
    listed = environment.get("KUBECONFIG", "")
    if listed:
        paths = [Path(part) for part in listed.split(os.pathsep) if part]
    else:
        paths = [Path(environment.get("HOME", "/root")) / ".kube" / "config"]
    return [path for path in paths if path.exists()]


def read_kubeconfig(paths: list[Path]) -> Credentials:
    """The current context of one kubeconfig, or of several merged as kubectl does.

    Raises:
        ConfigError: If a file is unreadable, something it names is missing, or it asks for a way
            to authenticate that is not supported.
    """
    context_name = ""
    clusters: dict[str, tuple[dict[str, Any], Path]] = {}
    users: dict[str, tuple[dict[str, Any], Path]] = {}
    contexts: dict[str, tuple[dict[str, Any], Path]] = {}
    for path in paths:
        content = _kubeconfig(path)
        context_name = context_name or str(content.get("current-context") or "")
        for key, inner, found in (
            ("clusters", "cluster", clusters),
            ("users", "user", users),
            ("contexts", "context", contexts),
        ):
            for name, value in _named(content, key, inner):
                found.setdefault(name, (value, path.parent))
    if not context_name:
        raise _error("has no current-context")
    context = _lookup(contexts, context_name, "context")[0]
    cluster, cluster_base = _lookup(clusters, str(context.get("cluster")), "cluster")
    user, user_base = _lookup(users, str(context.get("user")), "user")
    server = str(cluster.get("server") or "").rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise _error(f"names no http(s) server in cluster {context.get('cluster')!r}")
    if cluster.get("proxy-url"):
        raise _error("proxy-url is not supported")
    for key, reason in _UNSUPPORTED_USER.items():
        if user.get(key):
            raise _error(reason)
    token_file = user.get("tokenFile")
    certificate = _material(user, "client-certificate", user_base)
    key_ = _material(user, "client-key", user_base)
    if (certificate is None) != (key_ is None):
        raise _error("client-certificate and client-key must come together")
    return Credentials(
        server=server,
        token=str(user.get("token") or ""),
        token_file=user_base / str(token_file) if token_file else None,
        ca=_material(cluster, "certificate-authority", cluster_base),
        certificate=certificate,
        key=key_,
        is_insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=str(cluster.get("tls-server-name") or ""),
    )


def _kubeconfig(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise _error(f"{path} is no YAML: {reason}") from error
    if not isinstance(content, dict):
        raise _error(f"{path} is no kubeconfig")
    return content


def _named(content: dict[str, Any], key: str, inner: str) -> list[tuple[str, dict[str, Any]]]:
    items = content.get(key)
    if not isinstance(items, list):
        return []
    return [
        (str(item.get("name")), item[inner])
        for item in items
        if isinstance(item, dict) and isinstance(item.get(inner), dict)
    ]


def _lookup(
    found: dict[str, tuple[dict[str, Any], Path]], name: str, what: str
) -> tuple[dict[str, Any], Path]:
    if name not in found:
        raise _error(f"has no {what} named {name!r}")
    return found[name]


def _material(mapping: dict[str, Any], key: str, base: Path) -> bytes | Path | None:
    inline, path = mapping.get(f"{key}-data"), mapping.get(key)
    if inline:
        try:
            return base64.b64decode(str(inline), validate=True)
        except binascii.Error as error:
            raise _error(f"{key}-data is not base64") from error
    return base / str(path) if path else None


def _content(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else _read(source)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _error(f"{path} cannot be read: {error.strerror}") from error


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # OpenSSL reads pairs from files only. Made with mode 0600, gone as soon as they are loaded.
    with tempfile.NamedTemporaryFile() as one, tempfile.NamedTemporaryFile() as two:
        one.write(certificate)
        two.write(key)
        one.flush()
        two.flush()
        # A key with a passphrase would make OpenSSL ask for it on the terminal.
        context.load_cert_chain(one.name, two.name, password="")


def _error(reason: str) -> ConfigError:
    return ConfigError("kube.kubeconfig", reason)
