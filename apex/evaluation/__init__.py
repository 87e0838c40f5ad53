"""A trained policy: evaluated, filmed, plotted."""
