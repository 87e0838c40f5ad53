"""The inference server, which decides for all actors."""
