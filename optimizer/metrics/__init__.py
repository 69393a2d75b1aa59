"""Metrics; METRICS lists them."""
