"""Objects from a file that holds what ``kubectl get ... -A -o json`` prints, read again on change.

Accepted: a ``List`` (or ``PodList`` ...), single objects, several documents after each other, as
JSON or as YAML. A file that cannot be read in full, or that is still being written, changes
nothing: the last full state stays.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import yaml

from collector.kube.convert import KINDS, OWNER_KINDS, Converted, convert, kind_of
from collector.kube.feed import Failed, Feed, Found, Listed, generations
from schemas.errors import ConfigError, DecodeError
from schemas.kubernetes import Node
from schemas.telemetry import counter

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileSource", "parse"]

_log = logging.getLogger(__name__)
_ERRORS: Final = counter("podwire_errors_total")
_BATCH: Final = 1000

_Objects = dict[str, list[Converted]]
_Identity = tuple[int, int, int]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a time stays a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def parse(data: bytes) -> _Objects:
    """Read the whole file.

    Returns:
        Every object of a known kind, by kind; all kinds are present.

    Raises:
        DecodeError: If the text is no complete JSON or YAML, or holds something that is neither
            an object nor a list of objects.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(f"is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise DecodeError("is empty")
    found: _Objects = {kind: [] for kind in (*OWNER_KINDS, *KINDS)}
    for document in _documents(text):
        _collect(document, found)
    return found


def _documents(text: str) -> list[Any]:
    try:
        if text.lstrip().startswith("{"):
            return _json_documents(text)
        return [item for item in yaml.load_all(text, _Loader) if item is not None]
    except json.JSONDecodeError as error:
        raise DecodeError(
            f"is not complete JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise DecodeError(f"is not complete YAML: {problem}{place}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; an impossible YAML scalar
        raise DecodeError(f"cannot be parsed: {error}") from error


def _json_documents(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    documents = []
    position = len(text) - len(text.lstrip())
    while position < len(text):
        document, position = decoder.raw_decode(text, position)
        documents.append(document)
        while position < len(text) and text[position].isspace():
            position += 1
    return documents


def _collect(document: Any, found: _Objects) -> None:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise DecodeError("holds something without a kind, so it is no Kubernetes object")
    if not document["kind"].endswith("List"):
        _add(document, kind_of(document), found)
        return
    items = document.get("items")
    if not isinstance(items, list):
        raise DecodeError(f"holds a {document['kind']} without items")
    # Items of a typed list (PodList) need not say their kind.
    item_kind = kind_of({"kind": document["kind"].removesuffix("List")})
    for item in items:
        _add(item, kind_of(item) or item_kind, found)


def _add(document: Any, kind: str, found: _Objects) -> None:
    if kind:
        found[kind].append(convert(kind, document))
    elif not isinstance(document, dict):
        _ERRORS.labels("kube", "malformed_object").inc()


class FileSource:
    """Feeds the file's objects at start and whenever it has changed and come to rest."""

    def __init__(self, path: Path, namespaces: tuple[str, ...], poll_interval_s: float) -> None:
        self._path = path
        self._namespaces = frozenset(namespaces)
        self._poll_interval_s = poll_interval_s
        self._generations = generations()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: _Identity | None = None
        self._judged: _Identity | None = None
        self._reported: str = ""
        self._initial: _Objects | None = None

    @property
    def scopes(self) -> frozenset[tuple[str, str]]:
        """Every kind, in one list each."""
        return frozenset((kind, "") for kind in KINDS)

    def check(self) -> None:
        """Read the file once.

        Raises:
            ConfigError: If it cannot be read in full.
        """
        try:
            self._seen = self._judged = self._identity()
            self._initial = parse(self._path.read_bytes())
        except OSError as error:
            raise ConfigError(
                "kube.from_file", f"{self._path} cannot be read: {error.strerror}"
            ) from error
        except DecodeError as error:
            raise ConfigError("kube.from_file", f"{self._path} {error.reason}") from error

    def start(self, feed: Feed) -> None:
        """Begin to feed. Call `check` first."""
        assert self._initial is not None
        self._thread = threading.Thread(
            target=self._run, args=(feed, self._initial), name="kube-file", daemon=True
        )
        self._initial = None
        self._thread.start()

    def in_sync(self) -> bool:
        """A file is always as current as it gets."""
        return True

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def poll(self) -> _Objects | None:
        """The objects of a file that changed and has not moved since the last look, else None.

        A writer that is still at work changes size or time between two looks; what it leaves
        half-done is unreadable and keeps the old state, reported once.
        """
        try:
            identity = self._identity()
            settled, self._seen = identity == self._seen, identity
            if not settled or identity == self._judged:
                return None
            data = self._path.read_bytes()
            if self._identity() != identity:
                return None
            self._judged = identity
            objects = parse(data)
        except OSError as error:
            self._report(f"cannot be read: {error.strerror}")
            return None
        except DecodeError as error:
            self._report(error.reason)
            return None
        self._reported = ""
        return objects

    def _report(self, reason: str) -> None:
        if reason == self._reported:
            return
        self._reported = reason
        _ERRORS.labels("kube", "unreadable_file").inc()
        _log.warning("%s %s; the state read before stays", self._path, reason)

    def _identity(self) -> _Identity:
        status = self._path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _run(self, feed: Feed, initial: _Objects) -> None:
        try:
            self._deliver(feed, initial)
            while not self._stop.wait(self._poll_interval_s):
                objects = self.poll()
                if objects is not None:
                    _log.info("%s changed and was read again", self._path)
                    self._deliver(feed, objects)
        except Exception as error:  # a bug: the process must not live on with old data
            feed.put(Failed(error))

    def _deliver(self, feed: Feed, objects: _Objects) -> None:
        generation = next(self._generations)
        for kind, converted in objects.items():
            kept = [item for item in converted if self._is_wanted(item)]
            for start in range(0, len(kept), _BATCH):
                feed.put(Found(kind, generation, kept[start : start + _BATCH]))
            if kind in KINDS:
                feed.put(Listed(kind, generation))

    def _is_wanted(self, item: Converted) -> bool:
        if not self._namespaces or item.record is None or isinstance(item.record, Node):
            return True
        return item.record.namespace in self._namespaces
