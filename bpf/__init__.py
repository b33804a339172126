"""eBPF sources and prebuilt objects; no code."""
