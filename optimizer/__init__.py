"""Take a trained PyTorch checkpoint to a measured, proven TensorRT or ONNX deployment."""

__version__ = "0.1.0"
