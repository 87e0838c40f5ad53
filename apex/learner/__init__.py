"""The learner: trains on what replay serves, publishes parameters, and keeps the membership.

`daemon` is the training loop; `prefetcher` brings it batches; `params_server` answers actors from
a thread of its own, with `membership` as its book; `client` is what actors and evaluators use.
"""
