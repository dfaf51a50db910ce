"""Scales and codes of activations, on cases small enough to check by hand; and the rotation before them."""

from __future__ import annotations

import pytest
import torch

from svdqc.compiler.quantize.hadamard import BLOCK, matrix, rotate, rotate_gram, rotate_offline
from svdqc.compiler.quantize.ranges import ActivationFormat, code_limits, encode, group_scales


def codes_of(values: list[float], range_name: str) -> tuple[list[int], float]:
    x = torch.tensor([values])
    scale = group_scales(x, range_name)
    codes = encode(x, scale, code_limits(range_name))
    return [int(c) for c in codes[0]], float(scale[0])


def test_symmetric__absmax_goes_to_7() -> None:
    assert codes_of([3.5, -7.0, 0.0, 1.0], "symmetric") == ([4, -7, 0, 1], 1.0)  # 3.5: half to even


def test_signed8__positive_extreme_makes_the_scale_negative() -> None:
    assert codes_of([8.0, -7.0, 1.0, 0.0], "signed8") == ([-8, 7, -1, 0], -1.0)


def test_signed8__negative_extreme_keeps_it_positive() -> None:
    assert codes_of([-8.0, 7.9, 1.0, 0.0], "signed8") == ([-8, 7, 1, 0], 1.0)


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 8.0, -8.0, 8.0], -1.0), ([1.0, -8.0, 8.0, 0.0], 1.0)]
)
def test_signed8__first_of_equal_magnitudes_decides(values: list[float], scale: float) -> None:
    assert codes_of(values, "signed8")[1] == scale


def test_unsigned__max_goes_to_15() -> None:
    assert codes_of([15.0, 0.0, 7.5, 2.5], "unsigned") == ([15, 0, 8, 2], 1.0)


@pytest.mark.parametrize("range_name", ["symmetric", "signed8", "unsigned"])
def test_zero_group__codes_are_zero(range_name: str) -> None:
    assert codes_of([0.0] * 4, range_name)[0] == [0] * 4


@pytest.mark.parametrize("range_name", ["symmetric", "signed8", "unsigned"])
def test_smallest_numbers__give_no_nan(range_name: str) -> None:
    codes, _ = codes_of([1e-45, 1e-44, 0.0, 1e-45], range_name)
    assert all(abs(c) <= 15 for c in codes)


def test_activation_format__unsigned_is_not_rotated() -> None:
    with pytest.raises(AssertionError):
        ActivationFormat(range="unsigned", rotate=True)


def test_rotate__is_the_sylvester_matrix_and_its_own_inverse() -> None:
    h = torch.ones(1, 1)
    while h.shape[0] < BLOCK:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    assert torch.equal(matrix(), h / 8)
    x = torch.randn(5, 3 * BLOCK, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(rotate(x)), x)
    torch.testing.assert_close(rotate(x), rotate_offline(x))


def test_rotate__integers_are_exact() -> None:
    x = torch.randint(-100, 100, (7, 2 * BLOCK), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(rotate(x), rotate_offline(x.double().float()))


def test_rotate_gram__is_the_gram_of_rotated_rows() -> None:
    x = torch.randn(300, BLOCK * 2, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rotate_gram(x.T @ x), rotate(x).T @ rotate(x), atol=1e-3, rtol=1e-4)
