"""What the page shows of one layer: spectra and histograms, figures 4 and 5 of SVDQuant (arXiv 2411.05007)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdqc.compiler.quantize.hadamard import rotate_offline
from svdqc.compiler.quantize.linear import QuantizedLinear
from svdqc.compiler.quantize.reference import dequantize_weight

MOST_POINTS = 160
NUM_BINS = 81
_MOST_RMS = 60.0
_SIDE_FOR_SPECTRA = 4096


def spectra(weight: Tensor | None, layer: QuantizedLinear) -> dict[str, Any]:
    """Singular values, largest first, of the weight, of the smoothed weight, and of what is left for the codes.

    Without the original weight [out_features, in_features] the one that the layer stands for is taken. Long spectra
    are thinned to MOST_POINTS, evenly in the logarithm of the index.
    """
    smooth = 1.0 / layer.inv_smooth
    branch = layer.lora_up.float() @ layer.lora_down.float()
    if weight is None:
        smoothed = branch + coded_weight(layer)
        weight = smoothed / smooth
    else:
        smoothed = weight * smooth
    curves = {
        "weight": singular_values(weight),
        "smoothed": singular_values(smoothed),
        "residual": singular_values(smoothed - branch),
    }
    index = _thinned(min(values.numel() for values in curves.values()))
    return {
        "index": [i + 1 for i in index],
        "rank": int(layer.lora_down.shape[0]),
        **{name: [_rounded(float(values[i])) for i in index] for name, values in curves.items()},
    }


def singular_values(matrix: Tensor) -> Tensor:
    """Of the whole matrix, through its smaller Gram matrix; of a sample of rows and columns where both are huge."""
    rows, columns = (-(-size // _SIDE_FOR_SPECTRA) for size in matrix.shape)
    if min(rows, columns) > 1:
        matrix = matrix[::rows, ::columns] * float(rows * columns) ** 0.5
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = small.double() @ small.double().T
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    return values.float()


def coded_weight(layer: QuantizedLinear) -> Tensor:
    """What the codes stand for, in the smoothed but unrotated space: [out_features, in_features] f32."""
    coded = dequantize_weight(layer.w_codes, layer.w_scale)
    return rotate_offline(coded) if layer.activation.rotate else coded


def histograms(
    weight: Tensor | None, tokens: Tensor | None, layer: QuantizedLinear
) -> dict[str, Any]:
    """Values in units of their RMS, as shares per bin: of the activations and of the weight, before and after."""
    smooth = 1.0 / layer.inv_smooth
    branch = layer.lora_up.float() @ layer.lora_down.float()
    smoothed = branch + coded_weight(layer) if weight is None else weight * smooth
    original = smoothed / smooth if weight is None else weight
    turn = rotate_offline if layer.activation.rotate else lambda v: v
    found = {
        "weight": _histogram({"original": original, "coded": turn(smoothed - branch)}),
    }
    if tokens is not None:
        coded = turn((tokens + layer.activation.shift) * layer.inv_smooth)
        found["activation"] = _histogram({"original": tokens, "coded": coded})
    return found


def channel_peaks(tokens: Tensor, layer: QuantizedLinear) -> dict[str, Any]:
    """Largest magnitude of each input channel over the RMS of all, in falling order of the original's."""
    coded = (tokens + layer.activation.shift) * layer.inv_smooth
    coded = rotate_offline(coded) if layer.activation.rotate else coded
    before = tokens.abs().amax(0) / _rms(tokens)
    after = coded.abs().amax(0) / _rms(coded)
    order = before.argsort(descending=True)
    index = torch.linspace(0, order.numel() - 1, min(MOST_POINTS, order.numel())).long()
    return {
        "original": [_rounded(float(v)) for v in before[order][index]],
        "coded": [_rounded(float(v)) for v in after.sort(descending=True).values[index]],
    }


def _histogram(parts: dict[str, Tensor]) -> dict[str, Any]:
    scaled = {name: values.flatten() / _rms(values) for name, values in parts.items()}
    peaks = {name: float(values.abs().max()) for name, values in scaled.items()}
    edge = min(max(peaks.values()), _MOST_RMS) * 1.02
    return {
        "edge": _rounded(edge),
        "peaks": {name: _rounded(peak) for name, peak in peaks.items()},
        "kurtosis": {
            name: _rounded(float(values.double().pow(4).mean())) for name, values in scaled.items()
        },
        **{
            name: [
                _rounded(float(share))
                for share in torch.histc(values.clamp(-edge, edge), NUM_BINS, -edge, edge)
                / values.numel()
            ]
            for name, values in scaled.items()
        },
    }


def _rms(values: Tensor) -> float:
    return max(float(values.square().mean().sqrt()), 1e-30)


def _thinned(count: int) -> list[int]:
    if count <= MOST_POINTS:
        return list(range(count))
    spaced = (
        torch.logspace(0, torch.tensor(float(count)).log10().item(), MOST_POINTS).round().long()
    )
    return sorted({min(int(i), count) - 1 for i in spaced})


def _rounded(value: float) -> float:
    """Five digits are enough for a picture, and keep the file small."""
    return float(f"{value:.5g}")
