"""Evaluate, film and plot trained policies."""
