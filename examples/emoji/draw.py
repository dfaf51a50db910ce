"""The models that draw.

`EagerModel` is the 16-bit original in diffusers, `QuantizedModel` an artifact. Both take and return float32 arrays.

    python examples/emoji/draw.py --artifact out/emoji.svdq "hot dog" "milky way" -o out/some.png
    python examples/emoji/draw.py "hot dog"                      # the 16-bit original
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sampling import Words, draw

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"


class EagerModel:
    """diffusers' FluxTransformer2DModel, executed by PyTorch in the dtype of its weights (bfloat16)."""

    def __init__(self, folder: Path = MODEL, dtype: str = "bfloat16") -> None:
        import torch
        from diffusers import FluxTransformer2DModel

        self._torch = torch
        self.dtype = getattr(torch, dtype)
        path = folder / "transformer"
        self.module = FluxTransformer2DModel.from_pretrained(path, torch_dtype=self.dtype).eval()

    def tensors(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """numpy -> torch, in the model's dtype."""
        return {k: self._torch.from_numpy(v).to(self.dtype) for k, v in inputs.items()}

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        with self._torch.inference_mode():
            sample = self.module(**self.tensors(inputs), return_dict=False)[0]
        return {"sample": sample.float().numpy()}


class QuantizedModel:
    """An artifact, run by svdqc without PyTorch. numpy has no bfloat16: ml_dtypes brings it."""

    def __init__(self, artifact: str | Path, threads: int = 0) -> None:
        import svdqc

        self.model = svdqc.load(artifact, threads=threads)
        self._dtypes = {port.name: port.dtype for port in self.model.inputs}

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        given = {name: self._narrowed(name, value) for name, value in inputs.items()}
        return {"sample": np.asarray(self.model(**given)["sample"], np.float32)}

    def _narrowed(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if self._dtypes.get(name) != "bf16":
            return value
        from ml_dtypes import bfloat16

        return value.astype(bfloat16)


def open_model(artifact: str | None, threads: int) -> Any:
    return EagerModel() if artifact is None else QuantizedModel(artifact, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw emoji from their Unicode names.")
    parser.add_argument("prompts", nargs="+", help="names of up to four words of model/vocab.json")
    parser.add_argument("--artifact", help="a .svdq file; default: the 16-bit original")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("-o", "--output", default="out/drawn.png")
    args = parser.parse_args()

    from sheet import contact_sheet

    seeds = [args.seed + i for i in range(len(args.prompts))]
    model = open_model(args.artifact, args.threads)
    pictures = draw(model, Words.open(MODEL), args.prompts, seeds)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    contact_sheet(args.prompts, [pictures], ["drawn"], columns=4).save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
