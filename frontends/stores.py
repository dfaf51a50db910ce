"""Where weights come from: a module in memory, or safetensors files read by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from svdqc.compiler.ir.weights import WeightSpec, WeightStore
from svdqc.frontends.errors import CheckpointError, NotAModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
PREFERRED_FILES = ("diffusion_pytorch_model", "model")


class ModuleWeights(WeightStore):
    """The tensors of a module in memory: referenced, moved to the CPU when read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def spec(self, name: str) -> WeightSpec:
        return WeightSpec(tuple(self._tensors[name].shape), self._tensors[name].dtype)

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().cpu().contiguous()


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, from the file's header."""

    file: Path
    spec: WeightSpec


class SafetensorsWeights(WeightStore):
    """Tensors in safetensors files, read by name at each `load`, cast to the dtype the graph wants.

    tensors  name → where it is
    dtypes   name → dtype that `load` returns, for the names whose stored dtype differs
    """

    def __init__(
        self, tensors: Mapping[str, StoredTensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self._tensors = dict(tensors)
        self._dtypes = dict(dtypes or {})

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def spec(self, name: str) -> WeightSpec:
        stored = self._tensors[name].spec
        return WeightSpec(stored.shape, self._dtypes.get(name, stored.dtype))

    def only(self, names: Iterable[str]) -> SafetensorsWeights:
        """The same files, restricted to `names`."""
        return SafetensorsWeights({name: self._tensors[name] for name in names}, self._dtypes)

    def load(self, name: str) -> torch.Tensor:
        with safe_open(str(self._tensors[name].file), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(self._dtypes.get(name, tensor.dtype)).contiguous()


def find_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`: one safetensors file, or shards with their index."""
    index = _first(folder, [f"{stem}.safetensors.index.json" for stem in PREFERRED_FILES])
    single = _first(folder, [f"{stem}.safetensors" for stem in PREFERRED_FILES])
    if single is not None:
        return read_header(single)
    if index is None:
        index = next(iter(sorted(folder.glob("*.safetensors.index*.json"))), None)
    if index is not None:
        return _read_shards(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    found = f"{len(files)} .safetensors files and no index" if files else "no .safetensors file"
    raise NotAModelError(
        str(folder),
        found,
        "save the model with save_pretrained(folder, safe_serialization=True)",
    )


def _first(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            str(index), f"no index ({error})", "download the index again"
        ) from None
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            str(index), f"missing shards: {', '.join(absent)}", "download the missing files"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        tensors.update(read_header(folder / shard))
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise CheckpointError(
            str(index),
            f"tensors that no shard holds: {', '.join(lost)}",
            "download the shards again",
        )
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, shapes and dtypes of one safetensors file; no tensor is read."""
    tensors: dict[str, StoredTensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                view = file.get_slice(name)
                spec = WeightSpec(tuple(view.get_shape()), DTYPES[view.get_dtype()])
                tensors[name] = StoredTensor(path, spec)
    except KeyError as error:
        raise CheckpointError(str(path), f"the dtype {error}", "convert it to bfloat16") from None
    except Exception as error:  # safetensors raises its own type, which has no stable name
        raise CheckpointError(
            str(path), f"no readable safetensors file ({error})", "download it again"
        ) from None
    return tensors
