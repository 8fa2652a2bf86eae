"""Knows only that `python -m testbed` is the command line."""

from testbed.cli import main

if __name__ == "__main__":
    main()
