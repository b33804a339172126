"""Metrics and entities from Kafka into ClickHouse. Wired together in `sink.pipeline`."""
