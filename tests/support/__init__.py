"""Fixtures, data and waits that tests share."""
