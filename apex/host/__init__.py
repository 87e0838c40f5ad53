"""The machine: files, hardware, how a process uses them."""
