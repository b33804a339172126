"""Defaults are valid, mistakes name their key."""

from __future__ import annotations

import pytest

from schemas.errors import ConfigError
from sink.oap.choices import Choices
from sink.oap.client import tls_context
from sink.oap.config import ForwarderConfig
from sink.oap.convert import Limits


def test_the_defaults_are_valid_and_those_of_the_conversion():
    config = ForwarderConfig.load({}, {})
    config.check()
    assert config.choices() == Choices()
    assert config.limits() == Limits()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"addresses": ()}, "forwarder.addresses"),
        ({"addresses": ("oap",)}, "forwarder.addresses"),
        ({"addresses": ("oap:11800", ":1")}, "forwarder.addresses"),
        ({"addresses": ("http://oap:port",)}, "forwarder.addresses"),
        ({"addresses": ("http://oap:11800",)}, "forwarder.addresses"),
        ({"addresses": ("oap:65536",)}, "forwarder.addresses"),
        ({"addresses": ("fd00::1:11800",)}, "forwarder.addresses"),
        ({"authentication": "s3cret\n"}, "forwarder.authentication"),
        ({"authentication": "s\u00fcss"}, "forwarder.authentication"),
        ({"tls": True, "tls_certificate_file": "c.pem"}, "forwarder.tls_key_file"),
        ({"tls_ca_file": "ca.pem"}, "forwarder.tls_ca_file"),
        ({"retry_min_s": 5.0, "retry_max_s": 1.0}, "forwarder.retry_max_s"),
        ({"stream_mb": 64, "buffer_mb": 100}, "forwarder.buffer_mb"),
    ],
)
def test_a_mistake_names_its_key(values, key):
    with pytest.raises(ConfigError) as caught:
        ForwarderConfig(**values).check()
    assert caught.value.key == key
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_not_there_names_its_key(tmp_path):
    config = ForwarderConfig(tls=True, tls_ca_file=str(tmp_path / "none.pem"))
    config.check()
    with pytest.raises(ConfigError) as caught:
        tls_context(config)
    assert caught.value.key == "forwarder.tls_ca_file"


def test_addresses_come_as_one_text():
    config = ForwarderConfig.load({}, {"PODWIRE_FORWARDER_ADDRESSES": "a:1, [::1]:2"})
    config.check()
    assert config.addresses == ("a:1", "[::1]:2")


def test_the_token_is_masked():
    assert "s3cret" not in repr(ForwarderConfig(authentication="s3cret"))
