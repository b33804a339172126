from __future__ import annotations

import errno
import inspect
import re

import pytest

from schemas import errors


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"── (\w+)", errors.__doc__ or "")
    assert sorted(["PodwireError", *drawn]) == sorted(errors.__all__)
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert inspect.isclass(kind)
        assert issubclass(kind, errors.PodwireError)


def test_errors_carry_what_callers_decide_by() -> None:
    assert errors.ConfigError("kafka.x", "bad").key == "kafka.x"
    assert errors.SinkBackpressure("full", 2.5).retry_after_s == 2.5
    mismatch = errors.LayoutMismatch("record", 8, 16)
    assert (mismatch.expected, mismatch.found) == (8, 16)
    assert errors.UnsupportedFeature("btf", "absent").name == "btf"


@pytest.mark.parametrize("kind", [errors.TransportError, errors.SinkBackpressure])
def test_what_may_work_later_is_retryable(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.RetryableError)


def test_bpf_errors_say_what_libbpf_said() -> None:
    error = errors.BpfError("load", errno.EPERM, "libbpf: last words")
    assert str(error) == "load: Operation not permitted (errno 1)\nlibbpf: last words"
    assert error.errno == errno.EPERM
