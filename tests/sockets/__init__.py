"""Sockets and prepared runs within the test's own process."""
