"""The table of items: storage, priorities, sampling and rate limiting."""
