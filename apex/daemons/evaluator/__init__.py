"""The evaluator: greedy episodes with the newest parameters."""
