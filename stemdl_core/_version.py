"""The version, in the one place where setup.py and the program read it."""

__version__ = "0.1.0"
