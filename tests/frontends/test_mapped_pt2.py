"""A .pt2 file whose weights stay on disk until they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from svdqc.frontends import capture
from svdqc.frontends.mapped_pt2 import load_mapped

WEIGHT_BYTES = 64 << 20


class Large(nn.Module):
    """One weight of 64 MB in f32, a tied one, a buffer, an empty parameter, a bf16 one of odd length."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(4096, WEIGHT_BYTES // 4 // 4096, bias=False)
        self.tied = nn.Linear(4096, WEIGHT_BYTES // 4 // 4096, bias=False)
        self.tied.weight = self.large.weight
        self.register_buffer("offset", torch.arange(3.0))
        self.odd = nn.Parameter(torch.arange(7.0).to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large(x) + self.tied(x) + self.offset.sum() + self.odd.float().sum()
        return y


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "large.pt2"
    torch.export.save(torch.export.export(Large().eval(), (torch.ones(2, 4096),)), path)
    return path


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line) << 10


def test_weights__stay_on_disk_and_are_the_same(saved: Path) -> None:
    before = own_memory()
    mapped = load_mapped(saved)
    largest = max(mapped.state_dict.values(), key=Tensor.numel)
    assert float(largest.detach().sum()) != 0.0  # every page is read
    assert own_memory() - before < WEIGHT_BYTES // 2
    read = torch.export.load(saved)
    assert mapped.state_dict.keys() == read.state_dict.keys()
    for name, tensor in read.state_dict.items():
        assert type(mapped.state_dict[name]) is type(tensor)
        assert torch.equal(mapped.state_dict[name], tensor), name
    state = mapped.state_dict
    assert state["large.weight"].data_ptr() == state["tied.weight"].data_ptr()


def test_capture__of_a_mapped_file(saved: Path) -> None:
    program = capture(saved)
    x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    (name,) = program.input_names()
    expected = torch.export.load(saved).module()(x)
    assert torch.allclose(program.run({name: x})[0], expected, rtol=1e-5, atol=1e-4)


def test_a_file_that_cannot_be_mapped__is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no mapping here")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    program = load_mapped(saved)
    assert torch.equal(program.state_dict["odd"], torch.arange(7.0).to(torch.bfloat16))
