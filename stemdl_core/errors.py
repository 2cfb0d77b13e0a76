"""The errors a user can cause, each one line that says what to do."""

from __future__ import annotations


class StemdlError(ValueError):
    """Bad input or bad arguments: the message is one clear line for the user.

    The command line prints it and exits with code 2; the plugin shows it in a notification.
    """


class ReadError(StemdlError):
    """A file could not be read as an image or a sequence."""


class CalibrationError(StemdlError):
    """The pixel size is missing, impossible, or contradicts the lattice."""


class ModelError(StemdlError):
    """A model is unknown, damaged, or does not fit the request."""
