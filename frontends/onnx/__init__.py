"""ONNX import: an .onnx file becomes an nn.Module, which torch.export captures like any other."""

from svdqc.frontends.onnx.load import load_onnx
from svdqc.frontends.onnx.module import OnnxInput, OnnxModule

__all__ = ["OnnxInput", "OnnxModule", "load_onnx"]
