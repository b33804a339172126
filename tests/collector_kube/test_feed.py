from __future__ import annotations

import threading

from collector.kube.feed import Feed, Listed


def test_messages_keep_their_order() -> None:
    feed = Feed()
    assert feed.get(0.0) is None
    assert feed.put(Listed("pods", 1))
    assert feed.put(Listed("nodes", 1))
    assert feed.get(0.0) == Listed("pods", 1)
    assert feed.get(0.0) == Listed("nodes", 1)


def test_a_full_feed_holds_its_source_back_until_it_is_closed() -> None:
    feed = Feed()
    delivered = 0
    full = threading.Event()

    def produce() -> None:
        nonlocal delivered
        while feed.put(Listed("pods", delivered)):
            delivered += 1
            if delivered == 16:
                full.set()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    assert full.wait(5)
    feed.close()
    thread.join(5)
    assert not thread.is_alive()
    assert delivered == 16
