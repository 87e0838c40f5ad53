"""What runs in the peers' own interpreters: the standard library, NumPy and the peer;
of apex its network alone, where the peer takes one."""
