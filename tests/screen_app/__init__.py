"""A start-up package for Nion Swift's own launcher that drives the real program from inside."""
