"""The runtime: run compiled artifacts without PyTorch. Needs numpy and the library libsvdq.so only."""

from svdqc.runtime import trust
from svdqc.runtime.library import cpu_features, version
from svdqc.runtime.model import DimInfo, LaunchProfile, Model, PortInfo, inspect, load, verify
from svdqc.runtime.tensors import Outputs

__all__ = [
    "DimInfo",
    "LaunchProfile",
    "Model",
    "Outputs",
    "PortInfo",
    "cpu_features",
    "inspect",
    "load",
    "trust",
    "verify",
    "version",
]
