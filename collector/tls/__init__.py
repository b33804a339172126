"""What is said inside TLS: which libraries there are, and the probes at their functions."""
