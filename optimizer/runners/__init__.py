"""Runtimes under the measuring contract; RUNNERS lists them."""
