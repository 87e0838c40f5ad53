"""`python -m benchmarks.environments`: the table of kinds of spaces with each algorithm."""

from benchmarks.environments.spaces import main

if __name__ == "__main__":
    main()
