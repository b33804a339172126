from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from collector.kube.credentials import default_kubeconfig, in_cluster, read_kubeconfig
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def kubeconfig(
    user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dev",
        "contexts": [{"name": "dev", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://10.1.2.3:6443/", **(cluster or {})}}
        ],
        "users": [{"name": "u", "user": user if user is not None else {"token": "secret"}}],
        **top,
    }


def written(tmp_path: Path, content: Any, name: str = "config") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_token(tmp_path: Path) -> None:
    credentials = read_kubeconfig([written(tmp_path, kubeconfig())])
    assert credentials.server == "https://10.1.2.3:6443"
    assert credentials.headers() == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(credentials)


def test_a_token_file_is_read_for_every_request(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    user = {"tokenFile": "token"}
    credentials = read_kubeconfig([written(tmp_path, kubeconfig(user))])
    assert credentials.headers() == {"Authorization": "Bearer first"}
    (tmp_path / "token").write_text("second\n")
    assert credentials.headers() == {"Authorization": "Bearer second"}
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="token cannot be read: No such file"):
        credentials.headers()


def test_several_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    first = written(tmp_path, {"current-context": "dev", "users": kubeconfig()["users"]}, "one")
    other = kubeconfig({"token": "other"}, **{"current-context": "prod"})
    second = written(tmp_path, other, "two")
    credentials = read_kubeconfig([first, second])
    assert credentials.headers() == {"Authorization": "Bearer secret"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (kubeconfig({"exec": {"command": "aws"}}), "credential plugins .exec. are not supported"),
        (kubeconfig({"auth-provider": {"name": "oidc"}}), "auth-provider is not supported"),
        (kubeconfig({"username": "a", "password": "b"}), "basic authentication is not supported"),
        (kubeconfig({"client-certificate-data": "eA=="}), "must come together"),
        (kubeconfig({"client-certificate-data": "%"}), "client-certificate-data is not base64"),
        (kubeconfig(cluster={"server": "10.1.2.3"}), "names no http"),
        (kubeconfig(cluster={"proxy-url": "http://p"}), "proxy-url is not supported"),
        (kubeconfig(**{"current-context": ""}), "has no current-context"),
        (kubeconfig(**{"current-context": "prod"}), "has no context named 'prod'"),
        (kubeconfig(clusters=None), "has no cluster named 'c'"),
        (kubeconfig(users=[{"name": "u"}]), "has no user named 'u'"),
        ("[1, 2]", "is no kubeconfig"),
        ("{", "is no YAML"),
    ],
)
def test_what_cannot_work_says_so_in_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        read_kubeconfig([written(tmp_path, content)])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("kube.kubeconfig: ")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_kubeconfig([tmp_path / "absent"])


def test_unusable_certificates(tmp_path: Path) -> None:
    inline = base64.b64encode(b"no certificate").decode()
    ca = kubeconfig(cluster={"certificate-authority-data": inline})
    with pytest.raises(ConfigError, match="unusable certificate or key"):
        read_kubeconfig([written(tmp_path, ca)]).ssl_context()
    pair = kubeconfig({"client-certificate-data": inline, "client-key-data": inline})
    with pytest.raises(ConfigError, match="unusable certificate or key"):
        read_kubeconfig([written(tmp_path, pair)]).ssl_context()
    absent = kubeconfig(cluster={"certificate-authority": "absent.crt"})
    with pytest.raises(ConfigError, match=r"absent.crt cannot be read"):
        read_kubeconfig([written(tmp_path, absent)]).ssl_context()


def test_plain_http_needs_no_tls(tmp_path: Path) -> None:
    content = kubeconfig(cluster={"server": "http://127.0.0.1:8001"})
    assert read_kubeconfig([written(tmp_path, content)]).ssl_context() is None


def test_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    credentials = in_cluster(environment, tmp_path)
    assert credentials.server == "https://10.96.0.1:443"
    assert credentials.headers() == {"Authorization": "Bearer abc"}
    assert credentials.ca == tmp_path / "ca.crt"
    assert in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}).server == "https://[fd00::1]:443"
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST is not set"):
        in_cluster({})


def test_default_files(tmp_path: Path) -> None:
    one = written(tmp_path, "a: 1", "one")
    assert default_kubeconfig({"KUBECONFIG": f"{one}:{tmp_path / 'absent'}"}) == [one]
    assert default_kubeconfig({"HOME": str(tmp_path)}) == []
    (tmp_path / ".kube").mkdir()
    config = written(tmp_path / ".kube", "a: 1")
    assert default_kubeconfig({"HOME": str(tmp_path)}) == [config]
