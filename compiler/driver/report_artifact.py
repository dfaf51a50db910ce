"""The report of an artifact: what its own bytes tell, without the model it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdqc.compiler.artifact.read import read_artifact
from svdqc.compiler.driver.golden import ArtifactWeights
from svdqc.compiler.driver.progress import Progress, Stages
from svdqc.compiler.driver.report_layers import histograms, spectra
from svdqc.compiler.quantize.linear import QuantizedLinear
from svdqc.compiler.quantize.ranges import ActivationFormat

FORMAT = "svdqc-report-1"
_TENSORS = ("inv_smooth", "lora_down", "lora_up", "w_codes", "w_scale")


def report_artifact(
    path: str | os.PathLike[str], *, num_details: int = 6, progress: Progress | None = None
) -> dict[str, Any]:
    """The same data as `report_model`, as far as the file holds it: no samples, so no ablation."""
    say = Stages(progress)
    artifact = read_artifact(path)
    records = artifact.quantization.get("layers", [])
    layers = [_row(record, artifact.quantization) for record in records]
    weights = ArtifactWeights(artifact)
    shown = _worst(layers, weights, num_details)
    details = []
    for done, row in enumerate(shown):
        say("study", done, len(shown), row["name"])
        layer = _layer(weights, row)
        details.append(_detail(row, layer))
    say("study", len(shown), max(len(shown), 1))
    told: Mapping[str, Any] = artifact.meta.get("report", {})
    ranks = sorted({row["rank"] for row in layers})
    return {
        "format": FORMAT,
        "subject": "artifact",
        "name": Path(path).name,
        "origin": told.get("origin", ""),
        "calibrated": any(row["error"] is not None for row in layers),
        "judged_on": "held-out calibration samples",
        "precision": artifact.quantization.get("precision", ""),
        "rank": ranks[0] if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}" if ranks else 0,
        "totals": {
            "num_layers": sum(len(row["layers"]) for row in layers),
            "num_kept": len(told.get("kept", {})),
            "bytes_quantized": sum(row["num_bytes"] for row in layers),
            "bytes_16_bit": sum(row["num_bytes_bf16"] for row in layers),
            "branch_bytes": sum(2 * row["rank"] * sum(row["shape"]) for row in layers),
        },
        "output_error": None,
        "layers": layers,
        "kept": dict(told.get("kept", {})),
        "allocation": told.get("allocation"),
        "details": details,
        "ablation": [],
        "trade_off": [],
        "pictures": [],
    }


def _row(record: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    metrics = record.get("metrics", {})
    return {
        "name": record["layers"][0],
        "layers": list(record["layers"]),
        "shape": list(record["shape"]),
        "precision": record.get("precision", quantization.get("precision", "int4")),
        "rank": record["rank"],
        "num_bytes": record["num_bytes"],
        "num_bytes_bf16": record["num_bytes_bf16"],
        "range": record.get("range", ""),
        "rotated": bool(record.get("rotated", False)),
        "error": metrics.get("error"),
        "weight_error": metrics.get("weight_error"),
        "sensitivity": None,
        "notes": list(record.get("notes", [])),
    }


def _worst(
    layers: list[dict[str, Any]], weights: ArtifactWeights, count: int
) -> list[dict[str, Any]]:
    """By error, of those whose codes the file holds under their own name; in the order of the model."""
    held = set(weights.names())
    known = [
        row
        for row in layers
        if row["precision"] == "int4" and all(f"{row['name']}.{t}" in held for t in _TENSORS)
    ]
    chosen = {
        row["name"]
        for row in sorted(
            known, key=lambda r: r["error"] or r["weight_error"] or 0.0, reverse=True
        )[:count]
    }
    return [row for row in known if row["name"] in chosen]


def _layer(weights: ArtifactWeights, row: Mapping[str, Any]) -> QuantizedLinear:
    inv_smooth, lora_down, lora_up, w_codes, w_scale = (
        weights.load(f"{row['name']}.{name}") for name in _TENSORS
    )
    group_size = w_codes.shape[1] // w_scale.shape[1]
    activation = ActivationFormat(4, group_size, row["range"], rotate=row["rotated"])
    return QuantizedLinear(inv_smooth, lora_down, lora_up, w_codes, w_scale, activation, None, {})


def _detail(row: Mapping[str, Any], layer: QuantizedLinear) -> dict[str, Any]:
    return {
        "name": row["name"],
        "shape": row["shape"],
        "rank": row["rank"],
        "precision": row["precision"],
        "range": row["range"],
        "rotated": row["rotated"],
        "error": row["error"],
        "spectra": spectra(None, layer),
        "histograms": histograms(None, None, layer),
        "ablation": {},
        "trade_off": [],
    }
