"""Knows the names the processes room offers; imports nothing heavy, so `import testbed` needs no radio and no screen."""

__all__ = ["__version__"]

__version__ = "0.1.0"
