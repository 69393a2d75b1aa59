"""Passes over ONNX graphs and analyses of them, one idea a file."""
