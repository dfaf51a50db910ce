"""A version 1 artifact kept in the repository: it must stay readable, and the writer must still give these bytes.

A change of format raises a version (runtime/FORMAT.md) and adds a file; this one stays. After a change that is
meant, write the file anew with

    PYTHONPATH=build/dev:. python -m tests.artifact.test_golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.runtime import tiny

from svdqc.compiler.artifact.format import Variant
from svdqc.compiler.artifact.read import read_artifact
from svdqc.compiler.artifact.write import write_artifact
from svdqc.runtime import inspect, verify

GOLDEN = Path(__file__).with_name("golden") / "tiny-v1.svdq"
CODE = b"code that is never loaded"


def write(path: Path) -> None:
    write_artifact(
        path,
        name="golden",
        producer="svdqc 0.1.0",
        tensors=tiny.tensors(),
        variants=[
            Variant("cpu:avx2", ("avx2", "fma"), CODE, tiny.make_plan(), {"flags": "-O3"}),
            Variant("cpu:portable", (), CODE, tiny.make_plan(), {}),
        ],
        graph=b"{}",
        quantization={"precision": "int4", "rank": 16},
        source_digest="5" * 64,
        meta={"text": "größer\n", "ratio": 0.25},
    )


def test_golden__both_readers_agree() -> None:
    artifact = read_artifact(GOLDEN)
    verify(GOLDEN)
    shown = inspect(GOLDEN)
    for key in ("name", "producer", "dims", "inputs", "outputs", "quantization", "meta"):
        assert shown[key] == artifact.manifest[key], key
    assert [v["trust_digest"] for v in shown["variants"]] == [
        v.trust_digest for v in artifact.variants
    ]
    assert [v["target"] for v in shown["variants"]] == ["cpu:avx2", "cpu:portable"]
    assert all(artifact.plan(v) == tiny.make_plan() for v in artifact.variants)
    np.testing.assert_array_equal(artifact.tensor("weight"), tiny.WEIGHT)
    assert artifact.code(artifact.variants[0]) == CODE


def test_golden__writer_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.svdq")
    assert (tmp_path / "a.svdq").read_bytes() == GOLDEN.read_bytes()


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    write(GOLDEN)
