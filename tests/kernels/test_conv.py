"""conv.h against PyTorch's convolutions in double precision."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.kernels.cpu_build import ISAS, build_harness, call, poisoned_scratch
from tests.kernels.test_gemm_f32 import numpy_bits
from torch.nn import functional

from svdqc.compiler.targets.cpu_layouts_f32 import pack_conv, pack_depthwise

EPS = 2.0**-24
POISON = 12345.0


@pytest.fixture(scope="session", params=ISAS)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    return build_harness("conv.cpp", request.param, tmp_path_factory.mktemp(request.param))


@dataclass
class Conv:
    """A convolution over len(size) dimensions; per-dimension lists, as torch takes them."""

    size: list[int]
    kernel: list[int]
    in_channels: int = 5
    out_channels: int = 20
    batch: int = 2
    stride: list[int] = field(default_factory=list)
    padding: list[int] = field(default_factory=list)
    dilation: list[int] = field(default_factory=list)
    output_padding: list[int] = field(default_factory=list)
    groups: int = 1
    transposed: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        dims = len(self.size)
        self.stride = self.stride or [1] * dims
        self.padding = self.padding or [0] * dims
        self.dilation = self.dilation or [1] * dims
        self.output_padding = self.output_padding or [0] * dims

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(self.size) * 31 + self.in_channels)
        per_group = (self.in_channels, self.out_channels // self.groups)
        if not self.transposed:
            per_group = (self.out_channels, self.in_channels // self.groups)
        w = torch.randn(*per_group, *self.kernel, generator=generator)
        if self.channels_last:
            x = torch.randn(self.batch, *self.size, self.in_channels, generator=generator)
            return x.movedim(-1, 1), w
        return torch.randn(self.batch, self.in_channels, *self.size, generator=generator), w

    def torch_conv(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        kind = "conv_transpose" if self.transposed else "conv"
        extra = {"output_padding": self.output_padding} if self.transposed else {}
        run: Callable[..., torch.Tensor] = getattr(functional, f"{kind}{len(self.size)}d")
        return run(
            x,
            w,
            None,
            self.stride,
            self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **extra,
        )

    def numbers(self, x: torch.Tensor, out_size: list[int], channels: int) -> np.ndarray:
        """The fields of ConvArgs after x."""
        fill = [1] * (3 - len(self.size))
        strides = [0] * len(fill) + list(x.stride()[2:])
        fields = [
            *(channels, x.stride(0), x.stride(1), *strides),
            *(*fill, *self.size, *fill, *out_size, *fill, *self.kernel, *fill, *self.stride),
            *(*(0 for _ in fill), *self.padding, *fill, *self.dilation, int(self.transposed)),
        ]
        return np.array(fields, dtype=np.int64)


def bound(conv: Conv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    terms = conv.in_channels // conv.groups * int(np.prod(conv.kernel))
    return 2 * (terms + 1) * EPS * conv.torch_conv(x.abs().double(), w.abs().double()) + 1e-30


def run_conv(
    library: ctypes.CDLL, conv: Conv, dtype: torch.dtype = torch.float32, step: int = 29
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(output, exact, bound), each [batch, out_channels, *out]; `step` rows a call, groups one after the other."""
    x, w = conv.tensors()
    w = w.to(dtype)
    exact = conv.torch_conv(x.double(), w.double())
    out_size = list(exact.shape[2:])
    rows = conv.batch * int(np.prod(out_size))
    channels, width = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    panels = -(-width // 16)
    packed = pack_conv(w, conv.groups, conv.transposed, dtype)
    name = {torch.float32: "f32", torch.bfloat16: "wbf16", torch.float16: "wf16"}[dtype]
    library.conv_scratch.restype = ctypes.c_int64
    size = library.conv_scratch(ctypes.c_int64(step), ctypes.c_int64(channels))
    scratch = poisoned_scratch(size + 64)
    parts = []
    for group in range(conv.groups):
        out = np.full((rows, panels * 16 + 1), POISON, np.float32)
        for begin in range(0, rows, step):
            call(
                getattr(library, f"run_conv_rows_{name}"),
                *(x[:, group * channels :], conv.numbers(x, out_size, channels)),
                *(begin, min(rows, begin + step), numpy_bits(packed[group]), 0, panels),
                *(out[begin:], panels * 16 + 1, scratch),
            )
        assert (out[:, -1] == POISON).all()
        assert (out[:, width:-1] == 0).all()
        parts.append(torch.from_numpy(out[:, :width]))
    assert (scratch[size:] == 0xFF).all()
    y = torch.cat(parts, dim=1).reshape(conv.batch, *out_size, conv.out_channels).movedim(-1, 1)
    return y, exact, bound(conv, x, w.float())


CASES = {
    "1x1": Conv([7, 9], [1, 1]),
    "1x1_two_images_one_call": Conv([2, 3], [1, 1], batch=3),
    "1x1_strided": Conv([7, 9], [1, 1], stride=[2, 2]),
    "3x3": Conv([7, 9], [3, 3], padding=[1, 1]),
    "3x3_no_padding": Conv([7, 9], [3, 3]),
    "3x3_strided": Conv([8, 9], [3, 3], stride=[2, 2], padding=[1, 1]),
    "3x3_dilated": Conv([9, 11], [3, 3], dilation=[2, 3], padding=[2, 3]),
    "wide_padding": Conv([3, 4], [3, 3], padding=[4, 5]),
    "patches": Conv([8, 8], [2, 2], stride=[2, 2], in_channels=4, out_channels=33),
    "rectangular": Conv([6, 10], [1, 5], stride=[1, 2], padding=[0, 2]),
    "channels_first": Conv([7, 9], [3, 3], padding=[1, 1], channels_last=False),
    "channels_first_wide": Conv([18, 37], [3, 3], padding=[1, 1], in_channels=35, channels_last=False),
    "channels_first_1x1": Conv([5, 40], [1, 1], in_channels=32, channels_last=False),
    "channels_first_strided": Conv([9, 40], [3, 3], stride=[2, 2], in_channels=17, channels_last=False),
    "many_channels": Conv([4, 5], [3, 3], padding=[1, 1], in_channels=400, out_channels=17),
    "over_a_slice": Conv([2, 3], [2, 2], padding=[1, 1], in_channels=1100, out_channels=16),
    "groups": Conv([6, 7], [3, 3], padding=[1, 1], in_channels=12, out_channels=40, groups=4),
    "groups_channels_first": Conv([6, 7], [3, 3], in_channels=12, out_channels=8, groups=2, channels_last=False),
    "1d": Conv([50], [4], padding=[3], stride=[2]),
    "1d_channels_first": Conv([50], [7], padding=[3], in_channels=18, channels_last=False),
    "3d": Conv([4, 5, 6], [3, 3, 3], padding=[1, 1, 1]),
    "3d_causal_strides": Conv([5, 6, 7], [3, 2, 2], stride=[1, 2, 2], padding=[2, 0, 1], batch=1),
    "transposed": Conv([5, 6], [3, 3], stride=[2, 2], padding=[1, 1], output_padding=[1, 0], transposed=True),
    "transposed_4x4": Conv([4, 4], [4, 4], stride=[2, 2], padding=[1, 1], transposed=True),
    "transposed_dilated": Conv([4, 5], [3, 2], stride=[3, 2], dilation=[2, 1], transposed=True),
    "transposed_groups": Conv([4, 5], [3, 3], in_channels=6, out_channels=10, groups=2, transposed=True),
    "transposed_1d": Conv([9], [5], stride=[3], padding=[2], transposed=True, channels_last=False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [1, 29, 1000])
def test_conv__matches_double(library: ctypes.CDLL, name: str, step: int) -> None:
    y, exact, limit = run_conv(library, CASES[name], step=step)
    assert ((y - exact).abs() <= limit).all()
    assert limit.max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conv__16_bit_weights(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    y, exact, limit = run_conv(library, CASES["3x3"], dtype)
    assert ((y - exact).abs() <= limit).all()


def test_conv__same_bits_for_any_split(library: ctypes.CDLL) -> None:
    conv = CASES["many_channels"]
    whole = run_conv(library, conv, step=1000)[0]
    for step in (1, 5, 13):
        assert torch.equal(run_conv(library, conv, step=step)[0], whole)


@pytest.mark.parametrize("name", ["3x3", "3x3_strided", "channels_first_wide", "1d"])
def test_im2col_rows__matches_unfold(library: ctypes.CDLL, name: str) -> None:
    conv = CASES[name]
    x, w = conv.tensors()
    exact = conv.torch_conv(x, w)
    taps = int(np.prod(conv.kernel))
    k = taps * conv.in_channels
    rows = exact.numel() // conv.out_channels
    out = np.full((rows, k + 1), POISON, np.float32)
    numbers = conv.numbers(x, list(exact.shape[2:]), conv.in_channels)
    call(library.run_im2col_rows, x, numbers, 0, rows, 0, taps, out, k + 1)
    if len(conv.size) == 1:
        x, conv = x.unsqueeze(2), Conv([1, *conv.size], [1, *conv.kernel], stride=[1, *conv.stride],
                                       padding=[0, *conv.padding], in_channels=conv.in_channels)  # fmt: skip
    columns = functional.unfold(
        x.contiguous(), *(tuple(v) for v in (conv.kernel, conv.dilation, conv.padding, conv.stride))
    )
    expected = (
        columns.reshape(x.shape[0], conv.in_channels, taps, -1).permute(0, 3, 2, 1).reshape(rows, k)
    )
    np.testing.assert_array_equal(out[:, :k], expected.numpy())
    assert (out[:, k] == POISON).all()
    middle = np.full((rows, k), POISON, np.float32)
    call(library.run_im2col_rows, x, numbers, 5, rows, 1, taps, middle, k)
    np.testing.assert_array_equal(
        middle[: rows - 5, : k - conv.in_channels], expected[5:, conv.in_channels :].numpy()
    )


DEPTHWISE: dict[str, Callable[[], Conv]] = {
    "3x3": lambda: Conv([7, 9], [3, 3], 40, 40, padding=[1, 1], groups=40),
    "7x7_strided": lambda: Conv([9, 9], [7, 7], 17, 17, stride=[2, 1], padding=[3, 3], groups=17),
    "channels_first": lambda: Conv([7, 9], [3, 3], 20, 20, groups=20, channels_last=False),
    "1d": lambda: Conv([30], [4], 33, 33, padding=[3], groups=33),
    "3d": lambda: Conv([4, 5, 6], [3, 3, 3], 16, 16, padding=[1, 1, 1], groups=16),
}


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("channels", [(0, None), (3, 16)])
def test_depthwise(library: ctypes.CDLL, name: str, channels: tuple[int, int | None]) -> None:
    conv = DEPTHWISE[name]()
    x, w = conv.tensors()
    exact = conv.torch_conv(x.double(), w.double())
    out_size = list(exact.shape[2:])
    rows = conv.batch * int(np.prod(out_size))
    begin, end = channels[0], channels[1] or conv.in_channels
    out = np.full((rows, end - begin + 1), POISON, np.float32)
    numbers = conv.numbers(x, out_size, conv.in_channels)
    for first in range(0, rows, 11):
        call(
            library.run_depthwise_rows_f32,
            *(x, numbers, first, min(rows, first + 11), pack_depthwise(w), begin, end),
            *(out[first:], end - begin + 1),
        )
    y = torch.from_numpy(out[:, :-1]).reshape(conv.batch, *out_size, end - begin).movedim(-1, 1)
    limit = bound(conv, x, w)[:, begin:end]
    assert ((y - exact[:, begin:end]).abs() <= limit).all()
    assert (out[:, -1] == POISON).all()
