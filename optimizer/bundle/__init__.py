"""Writes a deployment bundle from a run."""
