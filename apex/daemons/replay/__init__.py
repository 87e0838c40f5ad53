"""The replay server and its clients."""
