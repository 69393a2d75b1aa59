"""Streaming calibration: histograms that grow, range estimators, the calibration table."""
