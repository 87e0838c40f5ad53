"""Builders, stand-ins and waits that tests share."""
