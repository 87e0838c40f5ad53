"""Tests with real sockets and prepared runs in the test's own process."""
