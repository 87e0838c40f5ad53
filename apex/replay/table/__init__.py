"""The table of items: storage, priorities, selection."""
