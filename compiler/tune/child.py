"""The process that measures one candidate against the analytic choice: `python -m svdqc.compiler.tune.child REQUEST`.

REQUEST is the JSON of a `Request`; the answer, one line of JSON on standard output, is a `Timing`. Nothing of the
compiler is imported. Generated code may crash or hang: then this process does, and nothing else is lost.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from svdqc.runtime import Model, load

ANALYTIC = 1
FEWEST, MOST = 5, 400
"""Repetitions."""
FLOAT_BOUND = 1e-4
"""Of the largest value: results of another order of sums in f32; the same order gives the same bits."""
CODE_SHARE = 0.01
"""Of codes, at most, may be one step away: an input that lies between two of them."""


@dataclass(frozen=True)
class Request:
    """path       of the bench artifact; first: the launch of candidate 1
    candidate  to measure in turn with candidate 1
    seconds    to take for repetitions, about
    """

    path: str
    first: int
    candidate: int
    device: str
    threads: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """Medians over `repetitions` of each, taken in turn; wrong: why the results are not those of candidate 1, or ""."""

    median_us: float
    analytic_us: float
    repetitions: int
    wrong: str = ""


def measure(request: Request) -> Timing:
    with load(request.path, request.device, request.threads, trust=True, profile=True) as model:
        wanted, got = _outputs(model, ANALYTIC), _outputs(model, request.candidate)
        wrong = next((w for n in wanted if (w := _difference(wanted[n], got[n]))), "")
        if wrong:
            return Timing(0.0, 0.0, 0, wrong)
        times: dict[int, list[float]] = {ANALYTIC: [], request.candidate: []}
        ends = time.monotonic() + request.seconds
        count = 0
        while count < FEWEST or (count < MOST and time.monotonic() < ends):
            for candidate, found in times.items():
                _run(model, candidate)
                found.append(model.profile()[request.first + candidate - 1].microseconds)
            count += 1
        mine = median(times[request.candidate])
        return Timing(mine, median(times[ANALYTIC]), count)


def _run(model: Model, candidate: int) -> Any:
    return model(candidate=np.zeros(candidate, np.uint8))


def _outputs(model: Model, candidate: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in _run(model, candidate).items()}


def _difference(wanted: np.ndarray, got: np.ndarray) -> str:
    """Why the results are not the same; "" if their bits are, or they are as near as another order of sums brings
    them."""
    if wanted.tobytes() == got.tobytes():
        return ""
    if wanted.dtype.kind in "iub":
        far = ~_next_to(wanted, got)
        apart = np.count_nonzero(wanted != got)
        if not far.any() and apart <= CODE_SHARE * wanted.size:
            return ""
        return f"{apart} of {wanted.size} codes differ"
    wide, other = wanted.astype(np.float64), got.astype(np.float64)
    if not np.array_equal(np.isnan(wide), np.isnan(other)):
        return "other values are not numbers"
    largest = float(np.nanmax(np.abs(wide), initial=0.0))
    distance = float(np.nanmax(np.abs(wide - other), initial=0.0))
    if distance <= FLOAT_BOUND * largest:
        return ""
    return f"values differ by {distance:.3g} of {largest:.3g}"


def _next_to(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Where codes are at most one step apart: whole ones, or each of the two in a byte."""
    near: np.ndarray = np.abs(wanted.astype(np.int64) - got.astype(np.int64)) <= 1
    if wanted.itemsize > 1:
        return near
    nibbles = []
    for shift in (0, 4):
        a, b = (x.view(np.uint8) >> shift & 15 for x in (wanted, got))
        step = (a - b) & 15  # as of signed codes: from -1 to 0 is one step
        nibbles.append((step <= 1) | (step == 15))
    near |= nibbles[0] & nibbles[1]
    return near


def main() -> None:
    timing = measure(Request(**json.loads(sys.argv[1])))
    print(json.dumps(asdict(timing)), flush=True)


if __name__ == "__main__":
    main()
