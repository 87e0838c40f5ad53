"""What runs in the peers' own interpreters: the standard library, NumPy and the peer, no apex."""
