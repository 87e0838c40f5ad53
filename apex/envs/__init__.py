"""Environments: Atari and whatever gymnasium can make, behind one vectorised interface. No torch."""
