"""Checkpoints as files: found, read, checked, quantized and cached."""
