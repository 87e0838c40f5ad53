"""The replay server, its endpoints and its clients."""
