"""Environments, Atari's and gymnasium's, behind one interface. Does not import torch."""
