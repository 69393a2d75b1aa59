"""Streaming range estimators and the calibration table."""
