"""What tests of CUDA kernels report beside passing: how many launches they compared, and what inner loops cost."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest
from tests.cuda import host_kernels
from tests.cuda.sass import Sass

GateLoop = Callable[..., None]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Count launches on the host back end, for the summary (tests/cuda/summary.py)."""
    before = host_kernels.num_launches
    result = yield
    if host_kernels.num_launches != before:
        item.user_properties.append(("host_launches", host_kernels.num_launches - before))
    return result


@pytest.fixture
def gate_loop(record_property: Callable[[str, object], None]) -> GateLoop:
    """gate_loop(sass, opcode, budget): at most `budget` instructions per tensor-core operation in the inner loop.

    The row appears in the table at the end of the run. budget: issue slots per operation, from the documentation or
    from the kernel's own arithmetic; say which beside the number.
    """

    def gate(kernel: Sass, opcode: str, budget: float) -> None:
        loop = kernel.inner_loop(opcode)
        row = [kernel.name, kernel.arch, opcode, loop.ops, loop.per_op, budget, kernel.registers]
        record_property("sass_loop", row)
        assert loop.per_op <= budget, (
            f"{kernel.name} {kernel.arch}: {loop.per_op:.2f} instructions per {opcode}, "
            f"budget {budget}: {loop.opcodes().most_common(12)}"
        )

    return gate
