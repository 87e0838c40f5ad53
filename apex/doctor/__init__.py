"""What `apex doctor` looks at: the machine, the installation and the runs.

Each module has the checks of one topic; a check is a plain function that yields findings, prints
nothing, and takes what it judges as arguments wherever that can be had by argument.
"""
