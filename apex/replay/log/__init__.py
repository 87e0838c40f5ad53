"""The insert log, and the recovery of a table from it after a restart."""
