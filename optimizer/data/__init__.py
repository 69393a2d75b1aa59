"""Data sources and the samples they yield."""
