"""The learner: trains, publishes parameters and tracks the members of a run."""
