from __future__ import annotations

import base64
import dataclasses
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from collector.kube.api_client import ApiClient, ApiError
from collector.kube.credentials import Credentials, read_kubeconfig
from schemas.errors import TransportError
from tests.collector_kube import objects
from tests.collector_kube.fake_api import FakeApi
from tests.collector_kube.test_credentials import kubeconfig, written

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass
class Pki:
    directory: Path

    def pem(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A certificate authority, a server for localhost and 127.0.0.1, and a client."""
    directory = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *new, "-x509", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.crt"
    )
    for name, extra in (("server", "subjectAltName=IP:127.0.0.1,DNS:api.test"), ("client", "")):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / f"{name}.ext").write_text(extra or "basicConstraints=CA:FALSE")
        openssl(
            *("x509", "-req", "-days", "2", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-in", f"{name}.csr", "-out", f"{name}.crt"),
            *("-extfile", f"{name}.ext"),
        )
    return Pki(directory)


def tls_server(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.directory / "server.crt", pki.directory / "server.key")
    context.load_verify_locations(pki.directory / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_page() -> None:
    with FakeApi() as api:
        api.put(objects.pod("p1"))
        page = ApiClient(Credentials(api.url)).page("/api/v1/pods", {"limit": "5"})
        assert page["items"][0]["metadata"]["uid"] == "p1"
        assert page["metadata"]["resourceVersion"] == api.version


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 429, 500, 502, 503, 504])
def test_every_refusal_is_an_error_with_status_and_the_servers_words(status: int) -> None:
    with FakeApi() as api:
        api.fail(status, retry_after="7", message="words of the server\nsecond line")
        client = ApiClient(Credentials(api.url))
        with pytest.raises(ApiError) as caught:
            client.page("/api/v1/pods", {})
        assert caught.value.status == status
        assert caught.value.retry_after_s == 7.0
        assert caught.value.is_expired == (status == 410)
        assert caught.value.label == f"api_{status}"
        assert str(caught.value) == f"{api.url}/api/v1/pods: {status} words of the server"
        assert client.page("/api/v1/pods", {})["items"] is None


@pytest.mark.parametrize("body", [b"<html>login</html>", b"[]", b"", b'{"a":' * 50_000])
def test_an_answer_that_is_no_object(body: bytes) -> None:
    with FakeApi() as api:
        api.fail(200, body=body)
        with pytest.raises(ApiError, match="the answer is no JSON object"):
            ApiClient(Credentials(api.url)).page("/api/v1/pods", {})
        api.fail(502, body=body)
        with pytest.raises(ApiError, match=": 502"):
            ApiClient(Credentials(api.url)).page("/api/v1/pods", {})


def test_redirects_do_not_carry_the_token_elsewhere() -> None:
    with FakeApi() as api:
        api.fail(307, body=b"{}")
        with pytest.raises(ApiError, match=": 307"):
            ApiClient(Credentials(api.url, token="t")).page("/api/v1/pods", {})
        assert len(api.requests) == 1


def test_unusual_retry_after_is_bounded() -> None:
    with FakeApi() as api:
        client = ApiClient(Credentials(api.url))
        for text, expected in (("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("99999", 300.0), ("-1", 0)):
            api.fail(429, retry_after=text)
            with pytest.raises(ApiError) as caught:
                client.page("/api/v1/pods", {})
            assert caught.value.retry_after_s == expected


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransportError) as caught:
        ApiClient(Credentials(f"http://127.0.0.1:{port}")).page("/api/v1/pods", {})
    assert isinstance(caught.value, ApiError)
    assert str(caught.value) == f"http://127.0.0.1:{port}: Connection refused"
    assert caught.value.label == "api_unreachable"


def test_a_wrong_token_and_a_renewed_one(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    with FakeApi(token="new") as api:
        client = ApiClient(Credentials(api.url, token_file=token))
        with pytest.raises(ApiError) as caught:
            client.page("/api/v1/pods", {})
        assert caught.value.status == 401
        token.write_text("new")
        assert client.page("/api/v1/pods", {})["kind"] == "PodList"
        token.write_bytes(b"line\nbreak")
        with pytest.raises(ApiError):
            client.page("/api/v1/pods", {})


def test_watch_lines_arrive_whole_however_they_are_cut() -> None:
    with FakeApi() as api:
        stream = ApiClient(Credentials(api.url)).watch(
            "/api/v1/pods", {"resourceVersion": api.version}, 60
        )
        api.wait_for_watches("pods")
        long = "x" * 200_000
        line = b'{"type": "ADDED", "object": {"text": "%s"}}\n' % long.encode()
        for start in range(0, len(line), 70_000):
            api.inject(line[start : start + 70_000])
        api.inject(b'\n{"type": "A"}\n{"type": "B"}\n{"ty')
        api.inject(b'pe": "C"}\n')
        events = stream.events()
        assert next(events)["object"]["text"] == long
        assert [next(events)["type"] for _ in range(3)] == ["A", "B", "C"]
        query = api.watches("pods")[0].query
        assert query["allowWatchBookmarks"] == "true"
        assert query["timeoutSeconds"] == "60"
        stream.close()


def test_a_watch_that_breaks_inside_a_line_gives_an_error_and_not_the_piece() -> None:
    with FakeApi() as api:
        client = ApiClient(Credentials(api.url))
        stream = client.watch("/api/v1/pods", {"resourceVersion": api.version}, 60)
        api.wait_for_watches("pods")
        api.inject(b'{"type": "A"}\n{"type": "ADDED", "obj')
        events = stream.events()
        assert next(events) == {"type": "A"}
        api.cut()
        with pytest.raises(ApiError, match="the watch broke off"):
            next(events)
        stream.close()


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b"\xff\n"])
def test_a_line_that_is_no_event(line: bytes) -> None:
    with FakeApi() as api:
        client = ApiClient(Credentials(api.url))
        stream = client.watch("/api/v1/pods", {"resourceVersion": api.version}, 60)
        api.wait_for_watches("pods")
        api.inject(line)
        with pytest.raises(ApiError, match="no JSON object"):
            next(stream.events())
        stream.close()


def test_the_server_ends_the_watch_in_time() -> None:
    with FakeApi() as api:
        client = ApiClient(Credentials(api.url))
        stream = client.watch("/api/v1/pods", {"resourceVersion": api.version}, 0)
        assert list(stream.events()) == []
        stream.close()


def test_tls_with_a_client_certificate(tmp_path: Path, pki: Pki) -> None:
    def inline(name: str) -> str:
        return base64.b64encode(pki.pem(name)).decode()

    with FakeApi(tls=tls_server(pki)) as api:
        by_file = kubeconfig(
            {
                "client-certificate": str(pki.directory / "client.crt"),
                "client-key": str(pki.directory / "client.key"),
            },
            {"server": api.url, "certificate-authority": str(pki.directory / "ca.crt")},
        )
        by_value = kubeconfig(
            {
                "client-certificate-data": inline("client.crt"),
                "client-key-data": inline("client.key"),
            },
            {
                "server": api.url,
                "certificate-authority-data": inline("ca.crt"),
                "tls-server-name": "api.test",
            },
        )
        for content in (by_file, by_value):
            client = ApiClient(read_kubeconfig([written(tmp_path, content)]))
            assert client.page("/api/v1/pods", {})["kind"] == "PodList"
        # Neither an unknown authority nor a wrong name is accepted.
        by_value["clusters"][0]["cluster"]["tls-server-name"] = "other.test"
        stranger = kubeconfig(by_value["users"][0]["user"], {"server": api.url})
        for content in (by_value, stranger):
            client = ApiClient(read_kubeconfig([written(tmp_path, content)]))
            with pytest.raises(ApiError, match=r"certificate|hostname"):
                client.page("/api/v1/pods", {})
        stranger["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
        client = ApiClient(read_kubeconfig([written(tmp_path, stranger)]))
        assert client.page("/api/v1/pods", {})["kind"] == "PodList"
