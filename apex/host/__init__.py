"""The machine: files, hardware, and settings of the process."""
