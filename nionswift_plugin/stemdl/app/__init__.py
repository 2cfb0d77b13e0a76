"""The start-up package that Swift's launcher runs for ``stemdl swift``."""
