"""Loops that run in the peers' interpreters, and import only NumPy and the peer.

The one exception is apex's network, for a peer that accepts a custom network.
"""
