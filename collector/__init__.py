"""What runs on every node: kernel events into Kafka. Wired together in `collector.pipeline`."""
