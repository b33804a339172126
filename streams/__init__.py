"""Kernel events and Kubernetes metadata into minutes of metrics. Wired in `streams.app`."""
