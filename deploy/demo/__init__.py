"""``podwire demo``: a small cluster of network namespaces, and what podwire sees in it."""
