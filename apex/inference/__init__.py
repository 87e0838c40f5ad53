"""Central inference (SEED RL): one server decides for the environments of all actors."""
