"""Tiny models of every architecture: those that the tests of diffusers build, and text encoders of transformers.

diffusers describes each class for its own tests: a small config and inputs for it. Those files are not installed with
the library, so they come from a checkout of the same version, and a new class there is a new case here.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

KINDS = ("transformers", "unets", "autoencoders", "controlnets")
ALIAS = "diffusers_tests"
TEST_ONLY_MODULES = ("parameterized", "datasets", "requests_mock")
"""What those files import and the descriptions do not need."""
NOT_INPUTS = ("generator", "return_dict")


@dataclass(frozen=True)
class Case:
    """kind: a folder of diffusers' models, or "text"; `build` makes the module and its inputs."""

    kind: str
    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Any]]]


def diffusers_cases(checkout: Path) -> Iterator[Case]:
    """One case for each description in `checkout`/tests/models, the class's name first."""
    _import_as_package(checkout / "tests")
    for kind in KINDS:
        for path in sorted((checkout / "tests" / "models" / kind).glob("test_models*.py")):
            module_name = f"{ALIAS}.models.{kind}.{path.stem}"
            try:
                module = importlib.import_module(module_name)
            except ImportError as error:
                print(f"left out: {path.name} needs {error.name}", file=sys.stderr)
                continue
            for description in _descriptions(module):
                name = description.model_class.__name__
                variant = type(description).__name__.removesuffix("TesterConfig")
                yield Case(kind, f"{name} ({variant})", lambda d=description: _model_of(d))


def _descriptions(module: types.ModuleType) -> Iterator[Any]:
    for name, value in vars(module).items():
        own = inspect.isclass(value) and value.__module__ == module.__name__
        if own and name.endswith("TesterConfig") and hasattr(value, "get_dummy_inputs"):
            yield value()


def _model_of(description: Any) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = description.model_class(**description.get_init_dict())
    inputs = description.get_dummy_inputs()
    return model, {name: value for name, value in inputs.items() if name not in NOT_INPUTS}


def _import_as_package(folder: Path) -> None:
    """Make `folder` importable as ALIAS: its own name, tests, is taken."""
    if not (folder / "models").is_dir():
        raise SystemExit(f"{folder.parent} is no checkout of diffusers: it has no tests/models")
    for name in TEST_ONLY_MODULES:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    spec = importlib.util.spec_from_file_location(
        ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[ALIAS] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def text_cases() -> Iterator[Case]:
    """The text encoders of today's pipelines, two layers each."""
    import transformers

    small = {
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    grouped = {**small, "num_key_value_heads": 2, "head_dim": 16}
    clip = {**small, "hidden_act": "quick_gelu", "projection_dim": 32}
    t5 = {"vocab_size": 99, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4}
    gated = {**t5, "feed_forward_proj": "gated-gelu"}
    for config_name, model_name, config in (
        ("CLIPTextConfig", "CLIPTextModel", clip),
        ("CLIPTextConfig", "CLIPTextModelWithProjection", clip),
        ("T5Config", "T5EncoderModel", gated),
        ("UMT5Config", "UMT5EncoderModel", gated),
        ("BertConfig", "BertModel", small),
        ("XLMRobertaConfig", "XLMRobertaModel", {**small, "max_position_embeddings": 66}),
        ("LlamaConfig", "LlamaModel", grouped),
        ("MistralConfig", "MistralModel", grouped),
        ("Qwen2Config", "Qwen2Model", grouped),
        ("Qwen3Config", "Qwen3Model", grouped),
        ("GemmaConfig", "GemmaModel", grouped),
        ("Gemma2Config", "Gemma2Model", grouped),
    ):

        def build(
            config_name: str = config_name, model_name: str = model_name, config: Any = config
        ) -> tuple[nn.Module, dict[str, Any]]:
            torch.manual_seed(0)
            model = getattr(transformers, model_name)(
                getattr(transformers, config_name)(use_cache=False, **config)
            )
            mask = torch.ones(2, 11, dtype=torch.int64)
            mask[0, 7:] = 0
            return model, {"input_ids": torch.randint(3, 99, (2, 11)), "attention_mask": mask}

        yield Case("text", model_name, build)
