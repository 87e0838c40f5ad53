"""The insert log: what brings a table back after its server was killed."""
