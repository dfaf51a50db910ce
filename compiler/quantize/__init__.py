"""Quantization: the numbers. Pure functions on tensors; no graph in here."""
