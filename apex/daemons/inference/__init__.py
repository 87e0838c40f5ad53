"""The inference server: chooses the actions of all actors."""
