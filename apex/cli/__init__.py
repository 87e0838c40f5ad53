"""The `apex` command. Heavy imports are inside the functions that need them."""
