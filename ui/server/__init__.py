"""The server around page and viewport: one port, checked requests."""
