"""TLS in both directions, with certificates of the test's own authority."""

from __future__ import annotations

import subprocess

import grpc
import pytest

from tests.oap.server import Receiver
from tests.oap.test_senders import Counters, Sending, eventually

SUBJECT = "/CN={}"


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certificate(folder, name, authority=None, extra=()):
    key, made = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", SUBJECT.format(name)]
    command += ["-keyout", str(key), "-out", str(made)]
    if authority is not None:
        command += ["-CA", str(authority[0]), "-CAkey", str(authority[1])]
    for each in extra:
        command += ["-addext", each]
    openssl(*command)
    return made, key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder, "authority")
    return {
        "authority": authority,
        "server": certificate(
            folder, "server", authority, ("subjectAltName=DNS:oap.example.org,IP:127.0.0.1",)
        ),
        "client": certificate(folder, "client", authority),
        "stranger": certificate(folder, "stranger"),
    }


def serving(files, *, mutual):
    made, key = files["server"]
    return Receiver(
        credentials=grpc.ssl_server_credentials(
            [(key.read_bytes(), made.read_bytes())],
            files["authority"][0].read_bytes() if mutual else None,
            require_client_auth=mutual,
        )
    )


def client(files, name="client"):
    made, key = files[name]
    return {"tls_certificate_file": str(made), "tls_key_file": str(key)}


def test_tls(files):
    settings = {"tls": True, "tls_ca_file": str(files["authority"][0])}
    with serving(files, mutual=False) as receiver:
        with Sending(receiver.address, **settings) as sending:
            sending.put()
            assert sending.buffer.wait_empty(10)
        with Sending(receiver.address, **settings, tls_server_name="oap.example.org") as sending:
            sending.put()
            assert sending.buffer.wait_empty(10)
        assert len(receiver.streams) == 2


def test_both_sides_show_certificates(files):
    settings = {"tls": True, "tls_ca_file": str(files["authority"][0])}
    with serving(files, mutual=True) as receiver:
        with Sending(receiver.address, **settings, **client(files)) as sending:
            sending.put()
            assert sending.buffer.wait_empty(10)
        assert len(receiver.streams) == 1


@pytest.mark.parametrize(
    "settings",
    [
        lambda files: {"tls": True, "tls_ca_file": str(files["stranger"][0])},
        lambda files: {"tls": True, "tls_ca_file": str(files["authority"][0])},
        lambda files: (
            {"tls": True, "tls_ca_file": str(files["authority"][0])} | client(files, "stranger")
        ),
        lambda files: {},
    ],
    ids=["unknown authority", "no certificate", "wrong certificate", "no TLS"],
)
def test_strangers_do_not_talk(files, settings):
    counters = Counters()
    with serving(files, mutual=True) as receiver:
        with Sending(receiver.address, **settings(files)) as sending:
            sending.put()
            eventually(lambda: counters().get("streams_unavailable", 0) > 1)
            assert not sending.buffer.wait_empty(0)
        assert receiver.started == 0
