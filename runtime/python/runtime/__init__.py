"""The runtime: run compiled artifacts without PyTorch. Needs numpy and the library libsvdq.so only."""

from svdqc.runtime import trust
from svdqc.runtime.device_memory import DeviceTensor
from svdqc.runtime.library import cpu_features, gpus, version
from svdqc.runtime.model import DimInfo, LaunchProfile, Model, PortInfo, inspect, load, verify
from svdqc.runtime.tensors import Outputs

__all__ = [
    "DeviceTensor",
    "DimInfo",
    "LaunchProfile",
    "Model",
    "Outputs",
    "PortInfo",
    "cpu_features",
    "gpus",
    "inspect",
    "load",
    "trust",
    "verify",
    "version",
]
