from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from schemas.config import Config, KafkaConfig, load_file, setting
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, repr=False)
class ProbeConfig(Config):
    """One setting of every type."""

    SECTION: ClassVar[str] = "probe"

    interval_s: float = setting(1.0, "How often", minimum=0.1, maximum=10)
    rows: int = setting(100, "How many", minimum=1)
    mode: str = setting("fast", "Which way", choices=("fast", "exact"))
    enabled: bool = setting(True, "Whether at all")
    names: tuple[str, ...] = setting((), "Which ones")
    labels: dict[str, str] = setting({}, "What they are called")
    password: str = setting("", "The 100 % secret", secret=True)


def load(
    file: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **environment: str
) -> ProbeConfig:
    return ProbeConfig.load(file, environment, options)


def test_defaults_are_valid() -> None:
    assert load() == ProbeConfig()
    assert KafkaConfig.load(None, {}) == KafkaConfig()


def test_command_line_wins_over_environment_over_file_over_default() -> None:
    file = {"probe": {"rows": 2, "interval_s": 2, "mode": "exact"}}
    variables = {"PODWIRE_PROBE_INTERVAL_S": "3", "PODWIRE_PROBE_ROWS": "3"}
    config = load(file, {"rows": "4", "mode": None}, **variables)
    assert (config.rows, config.interval_s, config.mode) == (4, 3.0, "exact")


def test_environment_is_the_process_environment_unless_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PODWIRE_PROBE_ROWS", "7")
    assert ProbeConfig.load().rows == 7
    assert ProbeConfig.load(environment={}).rows == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a, b,,c ", ("a", "b", "c")), ("", ())],
)
def test_lists_from_text(text: str, expected: tuple[str, ...]) -> None:
    assert load(PODWIRE_PROBE_NAMES=text).names == expected


def test_lists_and_mappings_from_yaml_and_text() -> None:
    assert load({"probe": {"names": ["a", 1]}}).names == ("a", "1")
    assert load({"probe": {"labels": {"a": 1}}}).labels == {"a": "1"}
    assert load(PODWIRE_PROBE_LABELS="a=1, b = x=y").labels == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize(
    ("value", "expected"), [("yes", True), ("off", False), ("1", True), ("FALSE", False)]
)
def test_booleans_from_text(value: str, expected: bool) -> None:
    assert load(PODWIRE_PROBE_ENABLED=value).enabled is expected


def test_a_key_without_value_keeps_the_default() -> None:
    assert load({"probe": {"mode": None, "rows": None}}) == ProbeConfig()
    assert load({"probe": None}) == ProbeConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval_s", 0.01),
        ("interval_s", 11),
        ("interval_s", "soon"),
        ("interval_s", float("nan")),
        ("interval_s", "inf"),
        ("interval_s", True),
        ("rows", 0),
        ("rows", 1.5),
        ("rows", float("inf")),
        ("rows", [1]),
        ("mode", "slow"),
        ("mode", True),
        ("mode", {"a": 1}),
        ("enabled", "perhaps"),
        ("enabled", 2),
        ("names", 5),
        ("labels", 5),
        ("labels", ["a"]),
        ("surprise", 1),
    ],
)
def test_every_error_names_its_key(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"probe": {name: value}})
    assert caught.value.key == f"probe.{name}"
    assert str(caught.value).startswith(f"probe.{name}: ")
    assert "\n" not in str(caught.value)


def test_errors_from_the_environment_name_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^PODWIRE_PROBE_ROWS: 'many' is no whole number$"):
        load(PODWIRE_PROBE_ROWS="many")


def test_a_section_must_be_a_mapping() -> None:
    with pytest.raises(ConfigError, match=r"^probe: must be a mapping"):
        load({"probe": ["rows"]})


def test_secrets_never_show() -> None:
    config = load(PODWIRE_PROBE_PASSWORD="hunter2")
    assert config.password == "hunter2"
    assert config.masked()["password"] == "***"
    assert "hunter2" not in repr(config)
    assert ProbeConfig().masked()["password"] == ""
    kafka = KafkaConfig.load(None, {"PODWIRE_KAFKA_SASL_PASSWORD": "hunter2"})
    assert "hunter2" not in f"{kafka} {kafka!r} {kafka.masked()}"


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser("probe")
    ProbeConfig.add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for expected in ("probe settings", "--interval-s X How often [1.0]", "--rows N How many [100]",
                     "--enabled true|false", "The 100 % secret"):  # fmt: skip
        assert expected in shown
    assert vars(parser.parse_args([])) == dict.fromkeys(ProbeConfig().masked())


def test_options_arrive_as_typed() -> None:
    parser = argparse.ArgumentParser("probe")
    ProbeConfig.add_arguments(parser)
    options = vars(parser.parse_args(["--rows", "5", "--names", "a,b", "--enabled", "no"]))
    config = load(options=options)
    assert (config.rows, config.names, config.enabled) == (5, ("a", "b"), False)


def test_file_is_read_as_sections(tmp_path: Path) -> None:
    path = tmp_path / "podwire.yaml"
    path.write_text("sink:\n  url: x\nkafka:\n  bootstrap_servers: a:1,b:2\n")
    assert load_file(path)["sink"] == {"url": "x"}
    assert KafkaConfig.load(load_file(path), {}).bootstrap_servers == "a:1,b:2"
    path.write_text("")
    assert load_file(path) == {}


@pytest.mark.parametrize("content", [b"a: [1", b"- a\n- b\n", b"\xff\xfe\x00", b"a: b: c"])
def test_a_file_that_is_none_names_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "podwire.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert caught.value.key == str(path)
    assert "\n" not in str(caught.value)


def test_a_misspelt_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "podwire.yaml"
    path.write_text("colector:\n  node: a\n")
    with pytest.raises(ConfigError, match=r"podwire.yaml: colector: is none of collector, for"):
        load_file(path)


def test_an_absent_file_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path / "absent.yaml")


def test_kafka_client_settings_hold_only_what_applies() -> None:
    assert KafkaConfig(bootstrap_servers="a:1").client_settings() == {
        "bootstrap.servers": "a:1",
        "security.protocol": "PLAINTEXT",
    }
    secure = KafkaConfig(
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="user",
        sasl_password="word",
        ssl_ca_file="/ca.pem",
    ).client_settings()
    assert secure["sasl.mechanism"] == "PLAIN"
    assert secure["sasl.password"] == "word"
    assert secure["ssl.ca.location"] == "/ca.pem"
    assert "ssl.key.location" not in secure
    import confluent_kafka

    confluent_kafka.Producer(KafkaConfig().client_settings())  # librdkafka knows every name
