"""How a learner's update is executed: eagerly, or as a recorded graph that is replayed."""
