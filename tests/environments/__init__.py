"""Sets of environments in full, each in an environment that has its package: `make test-envs`."""
