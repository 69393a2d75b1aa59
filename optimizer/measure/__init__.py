"""Accuracy, latency and their statistics."""
