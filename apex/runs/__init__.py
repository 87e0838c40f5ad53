"""A run's directory: its files, checkpoints and recorded metrics."""
