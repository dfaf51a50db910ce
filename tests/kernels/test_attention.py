"""attention.h against softmax in double precision, and against PyTorch where nothing is visible."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, build_harness, call, poisoned_scratch
from torch.nn.functional import scaled_dot_product_attention

EPS = 2.0**-24
POISON = 12345.0


@pytest.fixture(scope="session", params=ISAS)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    return build_harness("attention.cpp", request.param, tmp_path_factory.mktemp(request.param))


@dataclass
class Case:
    """q [q_len, d], k [kv_len, d], v [kv_len, v_dim], mask [q_len, kv_len] float32 or bool."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None = None
    causal: bool = False
    scale: float | None = None

    @property
    def used_scale(self) -> float:
        return self.scale if self.scale is not None else 1.0 / math.sqrt(self.q.shape[1])


def make(q_len: int, kv_len: int, d: int, v_dim: int | None = None, **options: object) -> Case:
    generator = torch.Generator().manual_seed(q_len * 7 + kv_len * 3 + d)
    q, k = (torch.randn(n, d, generator=generator) for n in (q_len, kv_len))
    return Case(q, k, torch.randn(kv_len, v_dim or d, generator=generator), **options)  # type: ignore[arg-type]


def run(library: ctypes.CDLL, case: Case, q_range: tuple[int, int] | None = None) -> torch.Tensor:
    """Output [q_len, v_dim], rows outside q_range left at POISON. Tensors are passed with their own strides."""
    (q_len, d), (kv_len, v_dim) = case.q.shape, case.v.shape
    out = np.full((q_len + 1, v_dim + 3), POISON, np.float32)
    mask_row, mask_col = case.mask.stride() if case.mask is not None else (0, 0)
    strides = [case.q.stride(0), case.k.stride(0), case.v.stride(0), v_dim + 3,
               case.q.stride(1), case.k.stride(1), case.v.stride(1), mask_row, mask_col]  # fmt: skip
    is_bool = case.mask is not None and case.mask.dtype == torch.bool
    begin, end = q_range or (0, q_len)
    library.attention_scratch.restype = ctypes.c_int64
    size = library.attention_scratch(ctypes.c_int64(d), ctypes.c_int64(v_dim))
    scratch = poisoned_scratch(size + 64)
    call(
        library.run_attention,
        *(case.q, case.k, case.v, out, np.array([q_len, kv_len, d, v_dim]), np.array(strides)),
        *(None if is_bool else case.mask, case.mask if is_bool else None),
        *(float(case.used_scale), int(case.causal), begin, end, scratch),
    )
    assert (scratch[size:] == 0xFF).all()
    assert (out[:, v_dim:] == POISON).all()
    assert (out[end:] == POISON).all()
    return torch.from_numpy(out[:q_len, :v_dim].copy())


def exact_and_bound(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention in float64, and the error that f32 sums may make.

    A score is off by ds = 2 (d + 4) eps scale |q|.|k| + 4 eps (|mask| + |score - max|); a probability, relatively, by
    e^(2 ds) - 1; sums over kv_len keys (numerator and denominator) add 2 (kv_len + 8) eps each.
    """
    (q_len, d), kv_len = case.q.shape, case.k.shape[0]
    scores = case.used_scale * case.q.double() @ case.k.double().T
    products = abs(case.used_scale) * case.q.double().abs() @ case.k.double().abs().T
    error = 2 * (d + 4) * EPS * products
    if case.mask is not None and case.mask.dtype == torch.bool:
        scores = scores.masked_fill(~case.mask, -torch.inf)
    elif case.mask is not None:
        scores = scores + case.mask.double()
        error = error + 4 * EPS * torch.nan_to_num(case.mask.double().abs(), posinf=0.0)
    if case.causal:
        scores = scores.masked_fill(torch.ones(q_len, kv_len).tril() == 0, -torch.inf)
    distance = scores.amax(1, keepdim=True) - scores
    error = error + 4 * EPS * torch.nan_to_num(distance, nan=0.0, posinf=0.0)
    probability = torch.nan_to_num(torch.softmax(scores, dim=1), nan=0.0)
    # Keys far below the maximum may be off more, but weigh nothing: weigh each key's error by its probability.
    weighted = (probability * torch.expm1(2 * error)) @ case.v.double().abs()
    common = (probability * torch.expm1(2 * error)).sum(1, keepdim=True) + 4 * (kv_len + 8) * EPS
    return probability @ case.v.double(), weighted + common * (
        probability @ case.v.double().abs()
    ) + 1e-30


def check(library: ctypes.CDLL, case: Case) -> None:
    y = run(library, case)
    exact, limit = exact_and_bound(case)
    assert ((y - exact).abs() <= limit).all(), float(((y - exact).abs() / limit).max())
    assert limit.max() < 0.05 * exact.abs().max()


SHAPES = [
    *((q_len, 70, 24) for q_len in (1, 2, 11, 12, 13, 47, 48, 49, 191, 192, 193)),
    *((5, kv_len, 16) for kv_len in (1, 15, 16, 17, 31, 255, 256, 257, 600)),
    *((13, 33, d) for d in (1, 2, 15, 16, 17, 40, 64, 65, 128, 512)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_attention__matches_double(library: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    check(library, make(*shape))


@pytest.mark.parametrize("v_dim", [1, 16, 17, 100])
def test_attention__v_dim_differs(library: ctypes.CDLL, v_dim: int) -> None:
    check(library, make(20, 50, 24, v_dim))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 5), (60, 60), (300, 300), (100, 40), (40, 300)])
def test_attention__causal(library: ctypes.CDLL, q_len: int, kv_len: int) -> None:
    check(library, make(q_len, kv_len, 16, causal=True))


def masks(q_len: int, kv_len: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    keep = torch.rand(q_len, kv_len, generator=generator) > 0.4
    keep[:, 3] = True
    added = torch.randn(q_len, kv_len, generator=generator) * 3
    hidden = added.masked_fill(~keep, -torch.inf)
    return {
        "bool": keep,
        "bool_one_row": keep[:1].expand(q_len, kv_len),
        "bool_transposed": keep.T.contiguous().T,
        "f32": added,
        "f32_hidden": hidden,
        "f32_one_row": hidden[:1].expand(q_len, kv_len),
        "f32_one_column": added[:, :1].expand(q_len, kv_len),
        "f32_every_other": torch.repeat_interleave(added, 2, dim=1)[:, ::2],
    }


@pytest.mark.parametrize("name", masks(1, 8))
def test_attention__masks(library: ctypes.CDLL, name: str) -> None:
    check(library, make(50, 300, 24, mask=masks(50, 300)[name]))
    check(library, make(50, 300, 24, mask=masks(50, 300)[name], causal=True))


def test_attention__first_key_blocks_hidden(library: ctypes.CDLL) -> None:
    # The running maximum stays -inf over whole key blocks.
    mask = torch.zeros(30, 700)
    mask[:, :600] = -torch.inf
    check(library, make(30, 700, 16, mask=mask))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_attention__nothing_visible_gives_what_torch_gives(
    library: ctypes.CDLL, kind: torch.dtype
) -> None:
    keep = torch.ones(4, 20, dtype=torch.bool)
    keep[1] = False
    mask = keep if kind == torch.bool else torch.zeros(4, 20).masked_fill(~keep, -torch.inf)
    case = make(4, 20, 16, mask=mask)
    q, k, v = (t[None, None] for t in (case.q, case.k, case.v))
    theirs = scaled_dot_product_attention(q, k, v, mask)
    y = run(library, case)
    assert (y[1] == 0).all()
    torch.testing.assert_close(
        y, theirs[0, 0], rtol=1e-5, atol=1e-5
    )  # loose: the zero row is the point


def test_attention__no_keys(library: ctypes.CDLL) -> None:
    assert (run(library, make(5, 0, 8)) == 0).all()


def test_attention__nan_and_inf_reach_the_output(library: ctypes.CDLL) -> None:
    case = make(3, 300, 8)
    case.q[1, 2] = torch.nan
    y = run(library, case)
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()


def test_attention__large_scores_do_not_overflow(library: ctypes.CDLL) -> None:
    case = make(8, 40, 16)
    case.q *= 300.0
    y = run(library, case)
    assert torch.isfinite(y).all()
    picked = case.v[(case.q @ case.k.T).argmax(1)]
    assert (y - picked).abs().max() < 1e-3


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_attention__scale(library: ctypes.CDLL, scale: float) -> None:
    check(library, make(9, 40, 16, scale=scale))


def test_attention__strided_heads(library: ctypes.CDLL) -> None:
    # As in [tokens, 3, heads, head_dim], and with the head's elements apart.
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(60, 3, 4, 24, generator=generator)
    check(library, Case(qkv[:, 0, 1], qkv[:, 1, 1], qkv[:, 2, 1]))
    apart = torch.randn(60, 24, 3, generator=generator)
    check(library, Case(apart[..., 0], apart[..., 1], apart[..., 2]))
    channels_first = torch.randn(3, 24, 60, generator=generator).transpose(1, 2)
    check(library, Case(channels_first[0], channels_first[1], channels_first[2]))


@pytest.mark.parametrize("causal", [False, True])
def test_attention__same_bits_for_any_split(library: ctypes.CDLL, causal: bool) -> None:
    case = make(400, 400, 24, causal=causal)
    whole = run(library, case)
    for begin, end in ((0, 1), (5, 60), (47, 49), (190, 400), (399, 400)):
        part = run(library, case, (begin, end))
        torch.testing.assert_close(part[begin:end], whole[begin:end], rtol=0, atol=0)
