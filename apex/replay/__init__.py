"""Experience replay: structures that know nothing of the wire, the server, and its clients.

From the inside out: `sum_tree`, `selectors`, `rate_limiter`, `store`, `table`; then `server`,
which gives a table to the wire, and `client`, which the actors and the learner use.
Nothing here imports torch or gymnasium.
"""
