"""What the reading side says while nothing comes."""

from __future__ import annotations

import logging
import threading

import pytest
from confluent_kafka import TopicPartition

from schemas.clock import ManualClock
from schemas.events import encode_batch
from schemas.telemetry import Health
from schemas.topics import ACCESS_LOG
from sink.consumer import Record
from sink.oap import forwarder
from sink.oap.buffer import Buffer
from sink.oap.config import ForwarderConfig
from sink.oap.forwarder import Forwarder
from sink.oap.sender import Senders
from tests.oap.batches import random_batch


class Reading:
    """A member of the group that is given partitions and messages."""

    def __init__(self):
        self.owned, self.came, self.went, self.records = set(), [], [], []

    def assign(self, *partitions):
        self.owned |= set(partitions)
        self.came += [TopicPartition(ACCESS_LOG.name, one) for one in partitions]

    def revoke(self, *partitions):
        self.owned -= set(partitions)
        self.went += [TopicPartition(ACCESS_LOG.name, one) for one in partitions]

    def read(self, limit, timeout_s):
        records, self.records = self.records, []
        return records

    def changes(self):
        (came, went), self.came, self.went = (self.came, self.went), [], []
        return came, went

    def owns(self, topic, partition):
        return partition in self.owned


@pytest.fixture
def reading():
    return Reading()


@pytest.fixture
def step(reading, monkeypatch):
    """One step of a forwarder that has been waiting for long."""
    monkeypatch.setattr(forwarder, "_QUIET_S", 0.0)
    config = ForwarderConfig()
    buffer = Buffer(1 << 20, lambda parcel: None)
    made = Forwarder(
        config=config,
        source=reading,
        dead_letters=None,
        retry=None,
        buffer=buffer,
        senders=Senders(config, buffer),
        clock=ManualClock(0),
        health=Health(),
        stop=threading.Event(),
    )
    return lambda: made.step(0.0)


def test_a_topic_that_nobody_writes_is_said(reading, step, caplog):
    caplog.set_level(logging.WARNING)
    step()
    assert not caplog.messages  # another member has the partitions
    reading.assign(0, 1)
    step()
    assert "nothing on podwire.access-log.v1" in caplog.messages[-1]
    assert "streams.access_log" in caplog.messages[-1]
    caplog.clear()
    value = encode_batch(random_batch())
    reading.records = [Record(ACCESS_LOG.name, 0, 0, b"node-a", value, 0)]
    assert step() == 1
    reading.revoke(0, 1)
    step()
    assert not caplog.messages
