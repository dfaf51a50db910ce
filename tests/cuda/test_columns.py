"""Epilogues on tiles: what stays in blocks of their columns is computed with the product, what does not is a kernel of
its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.compiler.programs import canonical
from tests.cuda.host_runner import PlanRunner
from torch import Tensor, nn
from torch.nn import functional as F

from svdqc.compiler.codegen.lower import lower
from svdqc.compiler.driver.variants import backend_of, plan_regions
from svdqc.compiler.targets.cuda import SM_80

WIDTH = 192
BOUND = 2e-4
"""64 products of 16-bit parts, 2^-16 of each left out, of values below 4 and 1/8, times a slope below 4; a wrong
column is off by a hundred times that."""


def heads(y: Tensor) -> Tensor:
    return y.unflatten(-1, (6, 32)).transpose(1, 2)


# epilogue of y [2, 40, 192] → how many launches the linear and it are
EPILOGUES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "gelu": (F.gelu, 1),
    "split_and_permuted": (lambda y: F.silu(heads(y)) * 2.0, 1),
    "slice": (lambda y: F.gelu(y[..., 64:160]), 1),
    "slice_off_the_tile": (lambda y: F.gelu(y[..., 7:100]) + 1.0, 1),
    "two_slices": (
        lambda y: torch.cat([F.gelu(y[..., :96]), F.silu(y[..., 96:])], 1),
        2,
    ),  # and its output
    "slice_of_heads": (lambda y: F.silu(heads(y[..., :128].repeat(1, 1, 2)[..., :192])), 1),
    "reversed": (lambda y: y + y.flip(-1), 2),
    "neighbours": (lambda y: y[..., 1:] * y[..., :-1], 2),
    "row": (lambda y: y.softmax(-1), 2),
}


class Model(nn.Module):
    def __init__(self, epilogue: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.epilogue = nn.Linear(64, WIDTH), epilogue

    def forward(self, x: Tensor) -> Tensor:
        return self.epilogue(self.linear(x))


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogue(name: str) -> None:
    torch.manual_seed(5)
    epilogue, launches = EPILOGUES[name]
    model, x = Model(epilogue).eval(), torch.randn(2, 40, 64)
    program = canonical(model, {"x": x}).program
    lowered = lower(program, plan_regions(program, SM_80), backend=backend_of(SM_80))
    [found] = PlanRunner(program, lowered)({"x": x}).values()
    with torch.no_grad():
        torch.testing.assert_close(found, model(x), rtol=0.0, atol=BOUND)
    assert len(lowered.plan.launches) == launches


class Products(nn.Module):
    """Softmax and norms after a batched product and convolutions: of whole rows, of a group, of all groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 48, 3, padding=1), nn.LayerNorm(48)
        self.grouped, self.rms = nn.Conv2d(8, 32, 1, groups=2), nn.RMSNorm(16, eps=1e-6)
        self.mixed, self.both = nn.Conv2d(8, 128, 1, groups=4), nn.RMSNorm(128, eps=1e-6)

    def forward(self, x: Tensor, y: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        weights = (torch.bmm(x, y.transpose(1, 2)) * 0.25).softmax(-1)
        wide = F.gelu(self.norm(self.conv(image).permute(0, 2, 3, 1)))
        grouped = self.grouped(image).permute(0, 2, 3, 1).unflatten(-1, (2, 16))
        return weights, wide, self.rms(grouped), self.both(self.mixed(image).permute(0, 2, 3, 1))


def test_whole_rows_in_tiles() -> None:
    torch.manual_seed(5)
    model = Products().eval()
    x, y, image = torch.randn(3, 18, 32), torch.randn(3, 40, 32), torch.randn(2, 8, 5, 6)
    given = {"x": x, "y": y, "image": image}
    program = canonical(model, given).program
    lowered = lower(program, plan_regions(program, SM_80), backend=backend_of(SM_80))
    assert len(lowered.plan.launches) == 1 + 1 + 1 + 2
    run = PlanRunner(program, lowered)
    results = run(given)
    with torch.no_grad():
        for found, want in zip(results.values(), model(**given), strict=True):
            torch.testing.assert_close(found, want, rtol=0.0, atol=BOUND)
    again = run(given, schedule=1)
    assert all(torch.equal(results[name], again[name]) for name in results)
