"""One typed dataclass per component, from a YAML file, ``PODWIRE_*`` variables and options.

A later source wins: default < file < environment < command line. The file has one section per
component (``collector:``, ``kafka:`` ...); the variable of ``collector.drain_interval_s`` is
``PODWIRE_COLLECTOR_DRAIN_INTERVAL_S`` and its option ``--drain-interval-s``. Fields are declared
with `setting`, which carries the help text, the range and whether the value is a secret.
"""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, get_type_hints

import yaml

from schemas.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["SCOPE", "SECTIONS", "Config", "KafkaConfig", "load_file", "setting"]

SECTIONS: Final = ("collector", "forwarder", "kafka", "kube", "sink", "streams")
"""Sections of a configuration file; one file serves all parts."""

SCOPE: Final = "scope"
"""A section of rules instead of settings; see `schemas.monitoring`."""


def setting(
    default: Any,
    help: str,  # the word every command line user knows
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | None = None,
    secret: bool = False,
) -> Any:
    """Declare a setting with its default, a sentence of help, and what values are allowed."""
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "secret": secret,
    }
    if isinstance(default, list | tuple | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base of the component configurations."""

    SECTION: ClassVar[str] = ""

    @classmethod
    def load(
        cls,
        file: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge the sources and check every value.

        Args:
            file: The whole configuration file as `load_file` returns it.
            environment: Defaults to ``os.environ``.
            options: Values from the command line by field name; None means not given.

        Raises:
            ConfigError: With the key at fault, for unknown keys, wrong types and ranges.
        """
        environment = os.environ if environment is None else environment
        section = (file or {}).get(cls.SECTION) or {}
        if not isinstance(section, dict):
            raise ConfigError(cls.SECTION, "must be a mapping of settings")
        known = {item.name for item in fields(cls)}
        for key in section:
            if key not in known:
                raise ConfigError(f"{cls.SECTION}.{key}", "unknown setting")
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for item in fields(cls):
            key = f"{cls.SECTION}.{item.name}"
            variable = f"PODWIRE_{cls.SECTION}_{item.name}".upper().replace("-", "_")
            if options and options.get(item.name) is not None:
                value = options[item.name]
            elif variable in environment:
                key, value = variable, environment[variable]
            elif section.get(item.name) is not None:  # "key:" without a value changes nothing
                value = section[item.name]
            else:
                continue
            values[item.name] = _checked(key, value, hints[item.name], item.metadata)
        return cls(**values)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add one option per setting, with its help, default and variable."""
        group = parser.add_argument_group(f"{cls.SECTION} settings")
        hints = get_type_hints(cls)
        for item in fields(cls):
            default = item.default
            if item.default_factory is not MISSING:
                default = item.default_factory()
            shown = "***" if item.metadata["secret"] and default else default
            group.add_argument(
                f"--{item.name.replace('_', '-')}",
                dest=item.name,
                default=None,
                metavar=_metavar(hints[item.name]),
                help=f"{item.metadata['help']} [{shown}]".replace("%", "%%"),
            )

    def masked(self) -> dict[str, Any]:
        """Return the values for logs; secrets that are set show as ``***``."""
        return {
            item.name: "***"
            if item.metadata["secret"] and getattr(self, item.name)
            else getattr(self, item.name)
            for item in fields(self)
        }

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.masked().items())
        return f"{type(self).__name__}({values})"


def load_file(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file.

    Raises:
        ConfigError: If the file cannot be read, is not a mapping, or has an unknown section.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        # Of what is no date, number or character yaml lets Python say that it is none.
        reason = str(error).replace("\n", " ")
        raise ConfigError(str(path), f"cannot be read: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(str(path), "must be a mapping of sections")
    for section in content:
        if section not in (*SECTIONS, SCOPE):
            raise ConfigError(f"{path}: {section}", f"is none of {', '.join((*SECTIONS, SCOPE))}")
    return content


def _metavar(hint: Any) -> str:
    if hint is bool:
        return "true|false"
    if hint is int:
        return "N"
    if hint is float:
        return "X"
    return "TEXT"


def _checked(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    choices = metadata["choices"]
    if value is False and choices and "off" in choices:
        value = "off"  # what YAML makes false of
    result = _converted(key, value, hint)
    minimum, maximum = metadata["minimum"], metadata["maximum"]
    if minimum is not None and result < minimum:
        raise ConfigError(key, f"{result} is below the minimum {minimum}")
    if maximum is not None and result > maximum:
        raise ConfigError(key, f"{result} is above the maximum {maximum}")
    if choices and result not in choices:
        raise ConfigError(key, f"{result!r} is not one of {', '.join(choices)}")
    return result


def _converted(key: str, value: Any, hint: Any) -> Any:
    if hint is bool:
        text = str(value).strip().lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if text in ("false", "no", "off", "0"):
            return False
        raise ConfigError(key, f"{value!r} is neither true nor false")
    if hint is int or hint is float:
        try:
            number = hint(value)
            if isinstance(value, bool) or (isinstance(value, float) and number != value):
                raise ValueError
            if not math.isfinite(number):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            kind = "whole number" if hint is int else "number"
            raise ConfigError(key, f"{value!r} is no {kind}") from None
        return number
    if hint is str:
        if isinstance(value, bool | dict | list):  # YAML reads a bare `no` or `on` as a boolean
            raise ConfigError(key, "must be text; put it in quotes")
        return str(value)
    if hint == tuple[str, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ConfigError(key, "must be a list")
        return tuple(str(part) for part in value)
    if hint == dict[str, str]:
        if isinstance(value, str):
            pairs = [part.partition("=") for part in value.split(",") if part.strip()]
            value = {name.strip(): text.strip() for name, _, text in pairs}
        if not isinstance(value, dict):
            raise ConfigError(key, "must be a mapping")
        return {str(name): str(text) for name, text in value.items()}
    raise TypeError(f"{key}: settings of type {hint} are not supported")


@dataclass(frozen=True, repr=False)
class KafkaConfig(Config):
    """How every component reaches Kafka."""

    SECTION: ClassVar[str] = "kafka"

    bootstrap_servers: str = setting("127.0.0.1:9092", "Brokers, host:port separated by commas")
    partitions: int = setting(
        1, "Partitions of the events topic when podwire creates it", minimum=1, maximum=10_000
    )
    replication_factor: int = setting(
        1, "Replicas of each topic when podwire creates it", minimum=1, maximum=15
    )
    security_protocol: str = setting(
        "PLAINTEXT",
        "How to talk to the brokers",
        choices=("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    )
    sasl_mechanism: str = setting(
        "SCRAM-SHA-512", "SASL mechanism", choices=("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    )
    sasl_username: str = setting("", "SASL user")
    sasl_password: str = setting("", "SASL password", secret=True)
    ssl_ca_file: str = setting("", "CA certificates (PEM) that signed the brokers' certificates")
    ssl_certificate_file: str = setting("", "Client certificate (PEM)")
    ssl_key_file: str = setting("", "Client key (PEM)")

    def client_settings(self) -> dict[str, str]:
        """Connection settings under librdkafka's names."""
        settings = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            settings["sasl.mechanism"] = self.sasl_mechanism
            settings["sasl.username"] = self.sasl_username
            settings["sasl.password"] = self.sasl_password
        if self.security_protocol.endswith("SSL"):
            pairs = (
                ("ssl.ca.location", self.ssl_ca_file),
                ("ssl.certificate.location", self.ssl_certificate_file),
                ("ssl.key.location", self.ssl_key_file),
            )
            settings.update({name: value for name, value in pairs if value})
        return settings
