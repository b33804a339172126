from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.kube.convert import KINDS
from collector.kube.source_file import FileSource, parse
from schemas.errors import ConfigError, DecodeError
from schemas.telemetry import counter
from tests.collector_kube import objects
from tests.collector_kube.fakes import FakeBroker, running

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = objects.CLUSTER_FILE.read_bytes()


def uids(found: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {kind: [item.uid for item in items] for kind, items in found.items() if items}


def write(path: Path, *items: dict[str, Any]) -> None:
    """Replace the file at once, as a careful writer does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(objects.kubectl_list(*items)))
    os.replace(fresh, path)


def source_of(path: Path, *namespaces: str) -> FileSource:
    source = FileSource(path, namespaces, 0.01)
    source.check()
    return source


def unreadable() -> float:
    return counter("podwire_errors_total").labels("kube", "unreadable_file")._value.get()


def test_kubectl_output_is_read_whatever_its_format() -> None:
    found = parse(_TEXT)
    assert {kind: len(items) for kind, items in found.items()} == {
        "replicasets": 0,
        "jobs": 0,
        "pods": 7,
        "services": 2,
        "endpointslices": 1,
        "nodes": 1,
    }
    assert not any(item.problems for items in found.values() for item in items)
    assert parse(yaml.safe_dump(objects.cluster()).encode()) == found
    documents = [json.dumps(item) for item in objects.cluster()["items"]]
    assert parse("\n".join(documents).encode()) == found
    assert parse("\n---\n".join(["# comment", *documents, ""]).encode()) == found
    assert parse(b"\xef\xbb\xbf" + _TEXT) == found


def test_yaml_times_stay_text() -> None:
    text = b"kind: Pod\nmetadata: {uid: p, name: n, creationTimestamp: 2024-05-01T10:00:00Z}\n"
    (pod,) = parse(text)["pods"]
    assert pod.problems == ()
    assert pod.record is not None
    assert pod.record.created_ms == 1_714_557_600_000


def test_typed_list_whose_items_have_no_kind() -> None:
    pod = objects.pod("p1")
    del pod["kind"]
    text = json.dumps({"kind": "PodList", "apiVersion": "v1", "items": [pod]})
    assert uids(parse(text.encode())) == {"pods": ["p1"]}


def test_an_explicitly_empty_list_is_a_state() -> None:
    assert uids(parse(b'{"kind": "List", "items": []}')) == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (_TEXT[:-3], "is not complete JSON"),
        (_TEXT[: len(_TEXT) // 2], "is not complete JSON"),
        (b"[1, 2", "is not complete YAML"),
        (b"hello", "without a kind"),
        (b'{"items": []}', "without a kind"),
        (b'{"kind": "List"}', "List without items"),
        (b'{"kind": "List", "items": {}}', "List without items"),
        (b'{"kind": "Pod"} trailing', "is not complete JSON"),
        (b'{"a":' * 100_000, "cannot be parsed"),
    ],
)
def test_what_is_no_full_state_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        parse(data)
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


@settings(max_examples=60)
@given(st.integers(0, len(_TEXT) - 3), st.booleans())
def test_no_prefix_of_kubectl_output_passes_for_the_whole(length: int, as_yaml: bool) -> None:
    text = yaml.safe_dump(objects.cluster()).encode() if as_yaml else _TEXT
    cut = min(length, text.rindex(b"kind: List") if as_yaml else length)
    with pytest.raises(DecodeError):
        parse(text[:cut])


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert set(parse(data)) >= set(KINDS)


def test_an_unreadable_file_at_start_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^kube.from_file: .*absent.json cannot be read: No such"
    ):
        source_of(tmp_path / "absent.json")
    half = tmp_path / "half.json"
    half.write_bytes(_TEXT[:1000])
    with pytest.raises(ConfigError, match=r"half.json is not complete JSON: .* line \d+") as caught:
        source_of(half)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="Is a directory"):
        source_of(tmp_path)


def test_a_change_counts_only_when_the_file_has_come_to_rest(tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, objects.pod("p1"))
    source = source_of(path)
    assert source.poll() is None
    write(path, objects.pod("p2"))
    assert source.poll() is None  # seen for the first time: somebody may still be writing
    found = source.poll()
    assert found is not None
    assert uids(found) == {"pods": ["p2"]}
    assert source.poll() is None


def test_a_file_that_grows_in_place_changes_nothing_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, objects.pod("p1"))
    source = source_of(path)
    step = len(_TEXT) // 7
    with path.open("wb") as file:
        for start in range(0, len(_TEXT), step):
            file.write(_TEXT[start : start + step])
            file.flush()
            if start + step < len(_TEXT):
                # Even when the writer pauses for long.
                assert source.poll() is None
                assert source.poll() is None
    assert source.poll() is None
    found = source.poll()
    assert found is not None
    assert len(found["pods"]) == 7


def test_an_unreadable_file_is_reported_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kube.json"
    write(path, objects.pod("p1"))
    source = source_of(path)
    before = unreadable()
    path.write_bytes(_TEXT[:500])
    for _ in range(5):
        assert source.poll() is None
    path.unlink()
    for _ in range(5):
        assert source.poll() is None
    assert unreadable() == before + 2
    assert [record.getMessage().split("json ", 1)[1] for record in caplog.records] == [
        "is not complete JSON: Unterminated string starting at at line 13 column 30; "
        "the state read before stays",
        "cannot be read: No such file or directory; the state read before stays",
    ]
    write(path, objects.pod("p2"))
    assert source.poll() is None
    assert source.poll() is not None


def test_the_topics_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    write(path, objects.pod("p1"), objects.pod("p2"), objects.service("s1"), objects.node("n1"))
    with running(source_of(path)) as run:
        run.wait_published()
        assert set(run.broker.alive("pods")) == {"p1", "p2"}
        path.write_text('{"kind": "List", "items": [')
        write(path, objects.pod("p2"), objects.pod("p3"), objects.service("s1"))
        run.broker.wait_for(lambda: not run.broker.alive("nodes"))
        assert set(run.broker.alive("pods")) == {"p2", "p3"}
        assert set(run.broker.state("pods")) == {"p1", "p2", "p3"}
        # What did not change was not published again.
        assert len(run.broker.messages("pods", "p2")) == 1
        assert len(run.broker.messages("services", "s1")) == 1


def test_owners_in_the_file_are_believed_before_names(tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    owner = ("ReplicaSet", "odd-name", "r1")
    replica_set = objects.replica_set("r1", "odd-name", "web")
    write(path, objects.pod("p1", owner=owner), replica_set)
    with running(source_of(path)) as run:
        run.wait_published()
        assert run.broker.alive("pods")["p1"].workload_name == "web"
        assert len(run.broker.messages("pods", "p1")) == 1


def test_namespaces_limit_what_is_published(tmp_path: Path) -> None:
    path = tmp_path / "kube.json"
    items = [objects.pod("p1"), objects.pod("p2", namespace="bank"), objects.node("n1")]
    write(path, *items)
    broker = FakeBroker()
    with running(source_of(path), broker) as run:
        run.wait_published()
        assert set(broker.alive("pods")) == {"p1", "p2"}
    with running(source_of(path, "bank"), broker, namespaces="bank") as run:
        run.wait_published()
        # What an earlier run published and nobody wants any longer is gone, too.
        assert set(broker.alive("pods")) == {"p2"}
        assert set(broker.alive("nodes")) == {"n1"}
