"""The daemons: long-running processes of a run, and what they share."""
