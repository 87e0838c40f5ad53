"""The learner: training, parameters, membership."""
