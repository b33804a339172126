"""The only place that knows every part: command line, one-machine runner, demo, manifests."""
