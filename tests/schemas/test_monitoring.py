"""Which connections are watched, and how a changed file becomes the scope in force."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import load_file
from schemas.errors import ConfigError
from schemas.monitoring import EVERYTHING, UNKNOWN, End, MonitoringScope, ScopeFile
from schemas.telemetry import counter

if TYPE_CHECKING:
    from pathlib import Path

SHOP = End("shop", {"app": "web", "version": "2"}, "node-a")
BANK = End("bank", {"app": "pay"}, "node-b")
OUTSIDE = End("", {}, "")


def scope(text: str) -> MonitoringScope:
    return MonitoringScope.parse(yaml.safe_load(text))


def is_watched(found: MonitoringScope, client: End, server: End, port: int = 80) -> bool:
    return not found.left_out(client, server)[port]


def test_without_rules_everything_is_watched() -> None:
    for text in ("", "{}", "include:", "{include: [], exclude: []}"):
        found = scope(text)
        assert found == EVERYTHING
        assert found.is_everything
        assert is_watched(found, OUTSIDE, OUTSIDE)
        assert str(found) == "everything"


@pytest.mark.parametrize(
    ("rule", "watched"),
    [
        ("namespaces: [shop]", "SS SB BS SO OS"),
        ("namespaces: [sh*, b*k]", "SS SB BS BB SO OS BO OB"),
        ("namespaces: shop", "SS SB BS SO OS"),
        ("labels: {app: web}", "SS SB BS SO OS"),
        ("labels: {app: web, version: '3'}", ""),
        ("labels: {version: '*'}", "SS SB BS SO OS"),
        ("nodes: [node-b]", "SB BS BB BO OB"),
        ("{namespaces: [shop], nodes: [node-b]}", ""),
        ("ports: [80]", "SS SB BS BB SO OS BO OB OO"),
        ("ports: [81, 443]", ""),
        ("ports: 79-81", "SS SB BS BB SO OS BO OB OO"),
        # The port is the server's, so that it is one with the rest of the rule.
        ("{namespaces: [shop], ports: [80]}", "SS BS OS"),
    ],
)
def test_either_end_is_enough(rule: str, watched: str) -> None:
    ends = {"S": SHOP, "B": BANK, "O": OUTSIDE}
    listed = [yaml.safe_load(rule if rule.startswith("{") else f"{{{rule}}}")]
    included, excluded = (MonitoringScope.parse({name: listed}) for name in ("include", "exclude"))
    for client, one in ends.items():
        for server, other in ends.items():
            is_meant = client + server in watched.split()
            assert is_watched(included, one, other) == is_meant
            assert is_watched(excluded, one, other) != is_meant


def test_what_is_excluded_is_not_watched_though_it_is_included() -> None:
    found = scope("{include: [{namespaces: [shop]}], exclude: [{labels: {app: pay}}]}")
    assert is_watched(found, SHOP, OUTSIDE)
    assert not is_watched(found, SHOP, BANK)
    assert not is_watched(found, BANK, OUTSIDE)
    assert str(found) == "include namespaces shop\nexclude labels app=pay"


RULES = st.fixed_dictionaries(
    {},
    optional={
        "namespaces": st.sampled_from((["shop"], ["bank", "s*"])),
        "labels": st.sampled_from(({"app": "web"}, {"app": "*"})),
        "nodes": st.sampled_from((["node-a"], ["node-b"])),
        "ports": st.sampled_from(([80], ["1-79", 443])),
    },
).filter(bool)
ENDS = st.sampled_from((SHOP, BANK, OUTSIDE))


@given(
    rules=st.fixed_dictionaries(
        {"include": st.lists(RULES, max_size=3), "exclude": st.lists(RULES, max_size=3)}
    ),
    client=ENDS,
    server=ENDS,
    hidden=st.tuples(*[st.booleans()] * 6),
)
def test_what_is_certain_does_not_change_with_more_knowledge(
    rules: dict[str, Any], client: End, server: End, hidden: tuple[bool, ...]
) -> None:
    found = MonitoringScope.parse(rules)
    less = []
    for end, (space, labels, node) in ((client, hidden[:3]), (server, hidden[3:])):
        less.append(
            End(
                None if space else end.namespace,
                None if labels else end.labels,
                None if node else end.node,
            )
        )
    early, late = found.left_out(less[0], less[1]), found.left_out(client, server)
    assert not (early & ~late).any()


def test_ports_and_nodes_are_enough_for_whoever_knows_no_pod() -> None:
    here = End(node="node-a")
    found = scope("exclude: [{ports: [9100]}, {nodes: [node-b]}, {namespaces: [kube-system]}]")
    assert found.left_out(here, UNKNOWN).nonzero()[0].tolist() == [9100]
    assert found.left_out(UNKNOWN, End(node="node-b")).all()
    found = scope("include: [{ports: [80]}, {namespaces: [shop], ports: [81]}]")
    assert (~found.left_out(here, UNKNOWN)).nonzero()[0].tolist() == [80, 81]
    assert found.names_pods
    assert not scope("include: [{ports: [80], nodes: [a]}]").names_pods


def test_only_the_star_stands_for_any_text() -> None:
    found = scope("exclude: [{namespaces: ['a?*', '[b]', 'c*d*']}]")
    named = {
        name
        for name in ("a?", "a?x", "ab", "b", "[b]", "cd", "cxdy", "dc")
        if found.left_out(End(name, {}, ""), UNKNOWN).all()
    }
    assert named == {"a?", "a?x", "[b]", "cd", "cxdy"}


def test_one_answer_of_many_ends_is_one_array() -> None:
    rules = ", ".join(f"{{namespaces: [n{each}], ports: [{1 + each}]}}" for each in range(30))
    found = scope(f"exclude: [{rules}]")
    ends = [End(f"n{each}", {}, "") for each in range(31)]
    answers = {id(found.left_out(client, server)) for client in ends for server in ends}
    assert len(answers) == 31


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"scope: must be a mapping of include, exclude"),
        ("excludes: []", r"scope.excludes: unknown; it is none of include, exclude"),
        ("exclude: {ports: [1]}", r"scope.exclude: must be a list of rules"),
        ("exclude: [{}]", r"scope.exclude\[0\]: says nothing; a rule has one or more of"),
        ("exclude: [9100]", r"scope.exclude\[0\]: must be a mapping of namespaces, labels"),
        ("include: [{port: 1}]", r"scope.include\[0\].port: unknown; it is none of namespaces"),
        ("include: [{ports: 1}, {ports: []}]", r"scope.include\[1\].ports: is empty; leave it"),
        ("include: [{namespaces:}]", r"scope.include\[0\].namespaces: is empty"),
        ("exclude: [{ports: [http]}]", r"ports\[0\]: 'http' is neither a port nor a range"),
        ("exclude: [{ports: ['80-']}]", r"ports\[0\]: '80-' is neither a port nor a range"),
        ("exclude: [{ports: ['1_0']}]", r"ports\[0\]: '1_0' is neither a port nor a range"),
        ("exclude: [{ports: [on]}]", r"ports\[0\]: True is neither a port nor a range"),
        ("exclude: [{ports: [90-80]}]", r"ports\[0\]: '90-80' is no range within 1-65535"),
        ("exclude: [{ports: [0, 1]}]", r"ports\[0\]: 0 is no range within 1-65535"),
        ("exclude: [{ports: [65536]}]", r"ports\[0\]: 65536 is no range within 1-65535"),
        ("exclude: [{namespaces: [on]}]", r"namespaces\[0\]: True is no text; put it in quotes"),
        ("exclude: [{labels: {version: 1.10}}]", r"labels.version: 1.1 is no text; put it in q"),
        ("exclude: [{labels: [app]}]", r"labels: must be a mapping of labels to their values"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scope(text)


BROKEN = (
    "scope: {exclude: [{ports: [x]}]}",
    "scope: [",
    "scope: {exclude: [{namespaces: [2024-13-01]}]}",
    "scope: {exclude: [{labels: {release: 2024-01-01T99:00:00Z}}]}",
    'scope: {exclude: [{nodes: ["\\UFFFFFFFF"]}]}',
    f"scope: {{exclude: [{{ports: [{'9' * 5_000}]}}]}}",
    f"scope: {'[' * 3_000}",
)


def test_a_changed_file_is_read_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "podwire.yaml"
    path.write_text("streams: {grace_s: 1}\nscope: {exclude: [{ports: [80]}]}\n")
    assert load_file(path)["scope"]
    file = ScopeFile(path, "streams")
    first = file.scope
    assert not file.poll()
    path.write_text("scope: {exclude: [{ports: [81]}]}")
    assert not file.poll()  # whoever writes it may not have finished
    assert file.poll()
    assert (file.scope, file.poll()) == (scope("exclude: [{ports: [81]}]"), False)
    errors = counter("podwire_errors_total").labels("streams", "scope")._value
    before = errors.get()
    for broken in BROKEN:
        path.write_text(broken)
        assert [file.poll() for _ in range(3)] == [False] * 3
    path.unlink()
    assert [file.poll() for _ in range(3)] == [False] * 3
    assert errors.get() - before == len(BROKEN) + 1
    assert file.scope == scope("exclude: [{ports: [81]}]")
    assert "the monitoring scope stays as it was: scope.exclude[0].ports[0]: 'x'" in caplog.text
    path.write_text("scope: {exclude: [{ports: [80]}]}")
    file.reload()
    assert file.poll()
    assert file.scope == first


def test_a_mounted_config_map_is_turned_round(tmp_path: Path) -> None:
    for name, port in (("one", 80), ("two", 81)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "podwire.yaml").write_text(f"scope: {{exclude: [{{ports: {port}}}]}}")
    os.utime(tmp_path / "one" / "podwire.yaml", (1, 1))
    os.utime(tmp_path / "two" / "podwire.yaml", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "podwire.yaml").symlink_to("..data/podwire.yaml")
    file = ScopeFile(tmp_path / "podwire.yaml", "collector")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "..data")
    assert [file.poll(), file.poll()] == [False, True]
    assert file.scope == scope("exclude: [{ports: 81}]")


def test_without_a_file_nothing_is_looked_for() -> None:
    file = ScopeFile(None, "streams")
    file.reload()
    assert not file.poll()
    assert file.scope == EVERYTHING
