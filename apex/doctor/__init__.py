"""The checks of `apex doctor`: the machine, the installation and the runs.

Each module has the checks of one topic. A check is a function that yields findings and prints
nothing; where possible, the facts that it judges are its arguments.
"""
