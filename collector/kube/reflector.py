"""Follows one collection of an API server: full list, then watch, without gaps.

The list is read in pages of one consistent snapshot. The watch starts at its resource version and
moves on with every event and bookmark; after a lost connection it resumes there. Only when the
server has forgotten that version (410, as an answer or inside the stream), or when the watch makes
no progress again and again, is everything listed anew, and what vanished in between is found by
comparison.

Source: kubernetes.io/docs/reference/using-api/api-concepts (efficient detection of changes,
bookmarks, retrieving large results in chunks, 410 Gone); client-go tools/cache/reflector.go.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from collector.kube.api_client import ApiError, WatchStream
from collector.kube.convert import Converted, convert
from collector.kube.feed import Failed, Found, Gone, Listed
from schemas.errors import ConfigError
from schemas.telemetry import RateLimited, counter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.kube.api_client import ApiClient
    from collector.kube.backoff import Backoff
    from collector.kube.feed import Feed

__all__ = ["Collection", "Reflector"]

_log = logging.getLogger(__name__)
_ERRORS: Final = counter("podwire_errors_total")
_RELISTS: Final = counter("podwire_kube_relists_total")
_STALLED_WATCHES: Final = 5
_ABOUT_THE_VERSION: Final = frozenset({400, 500, 504})
"""What servers answer when they cannot serve a resource version, besides 410."""

_LARGEST_PAGE: Final = 10_000
_SHORT_WATCH_S: Final = 1.0
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Collection:
    """What to follow: a kind, in one namespace or (empty) in all."""

    kind: str
    group: str
    namespace: str = ""
    metadata_only: bool = False

    @property
    def path(self) -> str:
        """Path of the collection below the server's address."""
        base = f"/apis/{self.group}" if "/" in self.group else f"/api/{self.group}"
        inside = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{base}{inside}/{self.kind}"

    def accept(self, *, is_list: bool) -> str:
        """The media type to ask for; plain JSON is the second choice for old servers."""
        if not self.metadata_only:
            return "application/json"
        special = _METADATA_ONLY.format(list="List" if is_list else "")
        return f"{special},application/json;q=0.9"


class Reflector(threading.Thread):
    """One collection in one thread."""

    def __init__(
        self,
        collection: Collection,
        client: ApiClient,
        feed: Feed,
        generations: Iterator[int],
        backoff: Backoff,
        page_size: int = 500,
        watch_timeout_s: float = 300.0,
    ) -> None:
        name = f"kube-{collection.kind}-{collection.namespace or 'all'}"
        super().__init__(name=name, daemon=True)
        self.collection = collection
        self._client = client
        self._feed = feed
        self._generations = generations
        self._backoff = backoff
        self._page_size = page_size
        self._watch_timeout_s = watch_timeout_s
        self._stopping = threading.Event()
        self._stream: WatchStream | None = None
        self._version = ""
        self._generation = 0
        self._reason = "start"
        self._stalled = 0
        self._opened = False
        self._warnings = RateLimited(_log, 30.0)
        self.is_watching = False

    def run(self) -> None:
        """List and watch until told to stop."""
        try:
            while not self._stopping.is_set():
                self._turn()
        except Exception as error:  # a bug: the process must not live on with old data
            self._feed.put(Failed(error))

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()
        stream = self._stream
        if stream is not None:
            stream.interrupt()

    def _turn(self) -> None:
        try:
            if not self._version:
                self._list()
            self._watch()
        except ApiError as error:
            self._recover(error)
        except ConfigError as error:  # credentials are unreadable now; they may be rotated
            self._recover(ApiError(str(error)))

    def _recover(self, error: ApiError) -> None:
        self.is_watching = False
        if self._stopping.is_set():
            return
        _ERRORS.labels("kube", error.label).inc()
        if error.is_expired:
            # Usual after a long pause: list anew, at once the first time.
            self._relist("expired")
            wait_s = self._backoff.next_s(error.retry_after_s) if self._stalled else 0.0
            self._stalled += 1
        else:
            self._warnings.warning("%s: %s", self.collection.kind, error)
            wait_s = self._backoff.next_s(error.retry_after_s)
            if self._version and (self._opened or error.status in _ABOUT_THE_VERSION):
                self._stalled += 1
                if self._stalled >= _STALLED_WATCHES:
                    # For example a server restored from a backup, which never reaches the
                    # version that we ask for.
                    self._relist("stalled")
                    self._stalled = 0
        self._stopping.wait(wait_s)

    def _relist(self, reason: str) -> None:
        self._version = ""
        self._reason = reason

    def _list(self) -> None:
        collection = self.collection
        _RELISTS.labels(collection.kind, self._reason).inc()
        generation = next(self._generations)
        page_size = self._page_size
        token = ""
        while not self._stopping.is_set():
            parameters = {"limit": str(page_size)}
            if token:
                parameters["continue"] = token
            accept = collection.accept(is_list=True)
            try:
                page = self._client.page(collection.path, parameters, accept)
            except ApiError as error:
                if error.is_expired and token:
                    # The snapshot went away between two pages: larger pages are done sooner.
                    self._page_size = min(_LARGEST_PAGE, page_size * 2)
                raise
            items, metadata = page.get("items"), page.get("metadata")
            if items is None:
                items = []  # how Go writes an empty list
            if not isinstance(items, list) or not isinstance(metadata, dict):
                raise ApiError(f"{collection.path}: the answer is no list")
            objects = [convert(collection.kind, item) for item in items]
            if objects:
                self._feed.put(Found(collection.kind, generation, objects, collection.namespace))
            token = _text(metadata.get("continue"))
            if token:
                continue
            version = _text(metadata.get("resourceVersion"))
            if not version:
                raise ApiError(f"{collection.path}: the list has no resource version")
            self._version, self._generation = version, generation
            self._feed.put(Listed(collection.kind, generation, collection.namespace))
            return

    def _watch(self) -> None:
        if self._stopping.is_set():
            return
        self._opened = False
        started = time.monotonic()
        stream = self._client.watch(
            self.collection.path,
            {"resourceVersion": self._version},
            # Spread, so that a restarted server does not see all of them at the same moment.
            self._watch_timeout_s * random.uniform(0.8, 1.2),
            self.collection.accept(is_list=False),
        )
        self._stream = stream
        self._opened = True
        self.is_watching = True
        progress = False
        try:
            # `stop` may have come before there was a stream to interrupt.
            events = iter(()) if self._stopping.is_set() else stream.events()
            for event in events:
                self._take(event)
                progress = True
                self._stalled = 0
                self._backoff.reset()
                if self._stopping.is_set():
                    return
        finally:
            self._stream = None
            stream.close()
        if progress or time.monotonic() - started > _SHORT_WATCH_S:
            self._stalled = 0
            self._backoff.reset()
        elif not self._stopping.is_set():
            raise ApiError("the server ended the watch at once")

    def _take(self, event: dict[str, Any]) -> None:
        kind, change, document = self.collection.kind, event.get("type"), event.get("object")
        if change == "ERROR":
            raise _stream_error(document)
        metadata = document.get("metadata") if isinstance(document, dict) else None
        version = _text(metadata.get("resourceVersion")) if isinstance(metadata, dict) else ""
        if change in ("ADDED", "MODIFIED"):
            self._found(convert(kind, document))
        elif change == "DELETED":
            self._feed.put(Gone(kind, convert(kind, document)))
        elif change != "BOOKMARK":
            self._found(Converted("", problems=("unknown type of event",)))
        if version:
            self._version = version

    def _found(self, converted: Converted) -> None:
        collection = self.collection
        self._feed.put(Found(collection.kind, self._generation, [converted], collection.namespace))


def _stream_error(document: object) -> ApiError:
    status = document if isinstance(document, dict) else {}
    code = status.get("code")
    message = str(status.get("message") or status.get("reason") or "no reason given")
    return ApiError(f"the watch ended: {message[:300]}", code if type(code) is int else 500)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
