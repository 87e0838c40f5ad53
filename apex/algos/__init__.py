"""Algorithms, one file each, behind the interface in `base`: all that the daemons know of them."""
