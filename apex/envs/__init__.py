"""Environments: Atari and whatever gymnasium makes, behind one interface. No torch."""
