"""Experience replay: an in-memory table of items and the insert log that makes it durable.

`table` has `sum_tree`, `selectors`, `rate_limiter`, `frame_store`, `store` and `table`, from the
inside out; `log` writes inserts to disk and recovers the table after a restart. The server and its
clients are in `apex.daemons.replay`. Nothing here imports torch or gymnasium.
"""
