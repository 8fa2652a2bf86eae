"""The processes room: knows its version, and imports nothing heavy, so no radio and no screen is needed."""

__all__ = ["__version__"]

__version__ = "0.1.0"
