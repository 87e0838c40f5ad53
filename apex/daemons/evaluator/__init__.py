"""The evaluator: plays greedy episodes with the newest parameters."""
