"""Pure tests: no sockets, no processes."""
