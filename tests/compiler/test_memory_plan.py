"""The arena: buffers that are alive together never overlap, and others may share."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from svdqc.compiler.plan.memory import ALIGNMENT, Lifetime, place


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    count = draw(st.integers(0, 24))
    result = []
    for i in range(count):
        first = draw(st.integers(0, 20))
        last = draw(st.integers(first, 22))
        result.append(Lifetime(f"b{i}", draw(st.integers(0, 1000)), first, last))
    return result


@settings(max_examples=400, deadline=None)
@given(lifetimes())
def test_live_buffers_do_not_overlap(buffers: list[Lifetime]) -> None:
    offsets, total = place(buffers)
    assert set(offsets) == {b.name for b in buffers}
    for a in buffers:
        assert offsets[a.name] % ALIGNMENT == 0
        assert 0 <= offsets[a.name] <= offsets[a.name] + a.num_bytes <= total
        for b in buffers:
            together = a.first <= b.last and b.first <= a.last
            if a.name < b.name and together and a.num_bytes and b.num_bytes:
                apart = (
                    offsets[a.name] + a.num_bytes <= offsets[b.name]
                    or offsets[b.name] + b.num_bytes <= offsets[a.name]
                )
                assert apart, f"{a} at {offsets[a.name]} and {b} at {offsets[b.name]}"


@settings(max_examples=100, deadline=None)
@given(lifetimes(), st.randoms())
def test_order_of_buffers_does_not_matter(buffers: list[Lifetime], random: object) -> None:
    shuffled = list(buffers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(buffers) == place(shuffled)


def test_chain_needs_two_buffers() -> None:
    """Each launch reads the last one's result: two results are alive at a time."""
    chain = [Lifetime(f"b{i}", 640, i, i + 1) for i in range(10)]
    assert place(chain)[1] == 2 * 640


def test_last_reader_and_first_writer_meet_in_one_launch() -> None:
    """A launch may not write over what it reads."""
    offsets, total = place([Lifetime("read", 64, 0, 3), Lifetime("written", 64, 3, 5)])
    assert offsets["read"] != offsets["written"]
    assert total == 128


def test_nothing_needs_nothing() -> None:
    assert place([]) == ({}, 0)
