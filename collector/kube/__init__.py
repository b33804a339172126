"""Kubernetes API to metadata topics. Wired together in `collector.kube.pipeline`."""
