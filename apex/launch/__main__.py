"""`python -m apex.launch`: run a suite without supervisord."""

from apex.launch.local import main

if __name__ == "__main__":
    main()
