"""Messages from the bytes of a connection: pure, incremental, and silent about bad bytes."""
