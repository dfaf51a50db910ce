"""Kernels for NVIDIA GPUs: the shared statements, their loops distributed over the threads of a CTA."""
