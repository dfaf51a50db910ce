"""Calibration: the graph in segments, the tokens it samples, and every source that samples may come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.driver import block_models, pipelines
from torch import Tensor, nn

import svdqc
from svdqc.compiler.driver import record_pipeline, segments
from svdqc.compiler.driver.calibrate import NoSamples, UnfitSamples, calibrate, rewindable
from svdqc.compiler.driver.calibration_source import BadFactory, calibration_source
from svdqc.compiler.driver.compile import capture_canonical
from svdqc.compiler.driver.pipeline_prompts import (
    BadPrompts,
    NoPipeline,
    Prompts,
    find_pipeline,
    read_prompts,
)
from svdqc.compiler.driver.record_pipeline import PipelineRecording, PipelineUnusable, _chosen
from svdqc.compiler.driver.reservoir import FIT_TOKENS, Reservoir, TokenSample
from svdqc.compiler.driver.segments import SegmentRunner, cut
from svdqc.compiler.driver.work_folder import StoredResults, WorkFolder
from svdqc.compiler.driver.work_path import work_path
from svdqc.compiler.ir.interpreter import run_program
from svdqc.compiler.ir.program import Program
from svdqc.compiler.passes.linear_groups import LinearGroup, linear_groups
from svdqc.compiler.passes.select_layers import quantized_groups
from svdqc.compiler.quantize.recipe import Recipe

BLOCK_BYTES = 4 * 64 * 64 * 6  # of f32 weights


@pytest.fixture(scope="module")
def captured() -> tuple[Program, list[LinearGroup]]:
    model, inputs = block_models.make(depth=4)
    found = capture_canonical(model, inputs, None, Recipe())
    return found.program, quantized_groups(found.decisions, linear_groups(found.program))


def work_in(folder: Path) -> WorkFolder:
    return WorkFolder(folder / "model.svdq", resume=True)


def observed(program: Program, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every value of a plain run, by node."""
    values: dict[str, Tensor] = {}
    run_program(program, sample, lambda node, value: values.update({node.name: value}))
    return values


# --- segments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, BLOCK_BYTES, 3 * BLOCK_BYTES, 1 << 40])
def test_segments__the_values_of_a_plain_run(
    captured: tuple[Program, list[LinearGroup]], limit: int
) -> None:
    program, groups = captured
    (sample,) = block_models.samples(1)
    expected = observed(program, sample)
    wanted = {group.x for group in groups}
    parts = cut(program, wanted, limit)
    assert len(parts) > 1 if limit < 1 << 40 else len(parts) == 1
    inputs = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    values: dict[Any, Any] = dict(zip(inputs, sample.values(), strict=True))
    seen: dict[str, Tensor] = {}
    for part in parts:
        assert set(part.live_in) <= set(values)
        runner = SegmentRunner(program, part)
        values = runner.run(values, lambda node, value: seen.update({node.name: value}))
        assert set(values) == set(part.live_out)
    assert {n.name for n in wanted} <= set(seen)
    for name, value in seen.items():
        assert torch.equal(value, expected[name]), name


def test_segments__weights_within_the_limit_and_read_once(
    captured: tuple[Program, list[LinearGroup]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, groups = captured
    limit = 2 * BLOCK_BYTES
    for part in cut(program, {group.x for group in groups}, limit):
        weights = {i for n in part.nodes for i in n.all_input_nodes if i.op == "get_attr"}
        assert sum(4 * w.meta["val"].numel() for w in weights) <= limit
    reads: list[str] = []
    load = type(program.weights).load

    def counted(store: Any, name: str) -> Tensor:
        reads.append(name)
        return load(store, name)

    work = work_in(tmp_path)
    samples = block_models.samples(7)
    monkeypatch.setattr(type(program.weights), "load", counted)
    calibrate(program, groups, samples, work, segment_bytes=limit)
    per_weight = {name: reads.count(name) for name in reads}
    assert max(per_weight.values()) == 2  # once for the key of the work, once for all seven samples


def test_segments__cut_where_little_lives() -> None:
    """A wide value lives inside of each block, a narrow one between them: cuts fall between."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ModuleList(nn.Linear(8, 800) for _ in range(6))
            self.down = nn.ModuleList(nn.Linear(800, 8) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for up, down in zip(self.up, self.down, strict=True):
                x = x + down(torch.relu(up(x)))
            return x

    inputs = {"x": torch.ones(1, 40, 8)}
    program = capture_canonical(Wide().eval(), inputs, None, Recipe()).program
    last = next(n for n in program.graph_module.graph.nodes if n.op == "output").all_input_nodes
    parts = cut(program, last, 2 * 2 * 4 * 6400 + 10_000)
    assert len(parts) >= 3
    for part in parts[:-1]:
        assert max(n.meta["val"].numel() for n in part.live_out) == 40 * 8


# --- tokens ------------------------------------------------------------------------------------------


def test_reservoir__uniform_and_bounded() -> None:
    reservoir = Reservoir(1000, torch.Generator().manual_seed(0))
    numbers = torch.arange(50_000.0).reshape(-1, 1)
    for block in numbers.split(777):
        reservoir.add(block)
    rows = reservoir.distinct()
    assert rows.shape == (1000, 1)
    # The mean of 1000 draws from 0..49999 has a standard deviation of 456.
    assert abs(float(rows.mean()) - 25_000) < 4 * 456
    counts = torch.histc(rows, 10, 0, 50_000)
    assert counts.min() > 60  # 100 expected, standard deviation 9.5


def test_tokens__held_out_are_whole_samples(
    captured: tuple[Program, list[LinearGroup]], tmp_path: Path
) -> None:
    program, groups = captured
    samples = block_models.samples(10)
    found = calibrate(program, groups, samples, work_in(tmp_path))
    assert list(found) == [group.name for group in groups]
    first = groups[0]
    per_sample = [observed(program, s)[first.x.name].reshape(-1, 64) for s in samples]
    layer = found[first.name]
    assert layer.held_out is not None
    fitted = {tuple(row.tolist()) for row in layer.fit}
    held = {tuple(row.tolist()) for row in layer.held_out}
    assert fitted == {tuple(row.tolist()) for rows in per_sample[:8] for row in rows}
    assert held == {tuple(row.tolist()) for rows in per_sample[8:] for row in rows}


def test_tokens__a_single_sample_is_cut_by_tokens() -> None:
    sample = TokenSample(0, "layer")
    sample.fit.add(torch.arange(100.0).reshape(50, 2).repeat(2, 1))
    fit, held_out = sample.result()
    assert (fit.shape, held_out.shape) == ((40, 2), (10, 2))


def test_tokens__do_not_depend_on_segments(
    captured: tuple[Program, list[LinearGroup]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, groups = captured
    monkeypatch.setattr("svdqc.compiler.driver.reservoir.FIT_TOKENS", 50)
    samples = block_models.samples()
    one = calibrate(program, groups, samples, work_in(tmp_path))
    tmp_path.joinpath("many").mkdir()
    work = work_in(tmp_path / "many")
    many = calibrate(program, groups, samples, work, segment_bytes=BLOCK_BYTES)
    for name in one:
        assert one[name].fit.shape == (50, one[name].fit.shape[1])
        assert torch.equal(one[name].fit, many[name].fit)
    assert FIT_TOKENS == 2048


def test_stopped_between_segments__finished_ones_are_not_run_again(
    captured: tuple[Program, list[LinearGroup]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, groups = captured
    samples = block_models.samples(5)
    whole = calibrate(program, groups, samples, work_in(tmp_path), segment_bytes=BLOCK_BYTES)
    expected = {name: whole[name].fit for name in whole}
    work_in_other = tmp_path / "other"
    work_in_other.mkdir()
    work = work_in(work_in_other)
    runs: list[segments.Segment] = []
    run = SegmentRunner.run

    def counted(self: SegmentRunner, *args: Any) -> Any:
        runs.append(self._segment)
        if len(runs) == 13:  # in the third segment
            raise KeyError("stopped")
        return run(self, *args)

    monkeypatch.setattr(SegmentRunner, "run", counted)
    with pytest.raises(KeyError, match="stopped"):
        calibrate(program, groups, samples, work, segment_bytes=BLOCK_BYTES)
    before = len(runs)
    found = calibrate(program, groups, samples, work, segment_bytes=BLOCK_BYTES)
    assert runs[10] is runs[12]
    assert runs[before].nodes == runs[12].nodes  # on from the third
    assert all(torch.equal(found[name].fit, expected[name]) for name in expected)
    assert not list(work.path.glob("between-*"))
    again = len(runs)
    calibrate(program, groups, samples, work, segment_bytes=BLOCK_BYTES)
    assert len(runs) == again


def test_samples__that_do_not_fit(
    captured: tuple[Program, list[LinearGroup]], tmp_path: Path
) -> None:
    program, groups = captured
    good = block_models.samples(1)[0]
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"y": good["x"]}, "'x' is missing"),
        ({"x": good["x"][:, :5]}, r"\[1, 5, 64\], not \[1, 32, 64\]"),
        ({"x": good["x"] * float("nan")}, "NaN"),
    ]
    for bad, told in cases:
        with pytest.raises(UnfitSamples, match=told) as error:
            calibrate(program, groups, [good, bad], work_in(tmp_path))
        assert "sample 1" in str(error.value)
    with pytest.raises(NoSamples):
        calibrate(program, groups, [], work_in(tmp_path))


# --- sources -----------------------------------------------------------------------------------------


def test_generator__spilled_and_read_twice(tmp_path: Path) -> None:
    samples = block_models.samples(3)
    work = work_in(tmp_path)
    nested = ({"cond": [{"mask": s["x"]}, None], "scale": 2.0} for s in samples)
    read = rewindable(nested, work)
    for _ in range(2):
        assert [list(s) for s in read] == [["cond.0.mask"]] * 3
        assert all(
            torch.equal(s["cond.0.mask"], o["x"]) for s, o in zip(read, samples, strict=True)
        )
    assert rewindable(samples, work) is samples


def test_every_source__the_same_artifact(tmp_path: Path) -> None:
    model, inputs = block_models.make(depth=1)
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, sample in enumerate(block_models.samples()):
        np.savez(folder / f"{number}.npz", x=sample["x"].numpy())

    def compiled(name: str, calibration: Any) -> bytes:
        output = tmp_path / name
        recipe = Recipe(rank=8, refine_iterations=0)
        svdqc.compile(
            *(model, inputs),
            output=output,
            recipe=recipe,
            target="cpu:portable",
            calibration=calibration,
        )
        return output.read_bytes()

    made = compiled("list", block_models.samples())
    assert compiled("generator", iter(block_models.samples())) == made
    assert compiled("function", block_models.samples) == made
    assert compiled("text", "tests.driver.block_models:yielded") == made
    assert compiled("folder", folder) == made
    assert compiled("none", "none") != made


def test_factory__that_is_none() -> None:
    for text in ("no_such_module:samples", "tests.driver.block_models:nothing"):
        with pytest.raises(BadFactory, match=text):
            calibration_source(text, None)
    with pytest.raises(BadFactory, match="ZeroDivisionError"):
        calibration_source(lambda: 1 // 0, None)

    def failing() -> Any:
        yield block_models.samples(1)[0]
        raise OSError("the second sample is lost")

    samples = calibration_source(failing, None)
    assert {*next(samples)} == {"x"}
    with pytest.raises(BadFactory, match="the second sample is lost"):
        next(samples)


def test_prompts__of_text_and_yaml(tmp_path: Path) -> None:
    text, yaml = tmp_path / "prompts.txt", tmp_path / "prompts.yaml"
    text.write_text("a red fox\n\n  a blue house \n")
    assert read_prompts(text) == Prompts(("a red fox", "a blue house"))
    yaml.write_text("[a red fox, 7]")
    assert read_prompts(yaml).prompts == ("a red fox", 7)
    yaml.write_text("prompts: [a fox]\nsteps: 3\nseed: 5\ncall: {height: 16}")
    assert read_prompts(yaml) == Prompts(("a fox",), 3, 5, {"height": 16})


@pytest.mark.parametrize(
    "content", ["", "prompts: []", "7", "{", "prompts: [a]\nstep: 3", "prompts: [a]\nsteps: many"]
)
def test_prompts__bad_yaml(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(BadPrompts, match=r"prompts\.yaml"):
        read_prompts(path)


def test_pipeline__found_around_the_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer").mkdir()
    for model in (tmp_path, tmp_path / "transformer"):
        assert find_pipeline(None, str(model)) == tmp_path
    for pipeline, model in (
        (None, "model.onnx"),
        (None, nn.Linear(1, 1)),
        (tmp_path / "x", tmp_path),
    ):
        with pytest.raises(NoPipeline, match="--pipeline"):
            find_pipeline(pipeline, model)


@pytest.mark.parametrize("per_prompt", [0.5, 1.0, 2.5, 7.0])
def test_selection__even_over_prompts_and_steps(per_prompt: float) -> None:
    prompts, steps = 40, 20
    chosen = [_chosen(steps, p, per_prompt) for p in range(prompts)]
    total = sum(map(len, chosen))
    assert abs(total - prompts * per_prompt) <= 2
    assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
    counts = [sum(k in c for c in chosen) for k in range(steps)]
    assert max(counts) - min(counts) <= 3  # the irregularity of 40 multiples of the golden ratio
    assert _chosen(steps, 3, None) == _chosen(steps, 3, 30.0) == list(range(steps))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    return pipelines.save_dit(tmp_path_factory.mktemp("dit"))


def test_recording__what_the_denoiser_is_called_with(dit: Path, tmp_path: Path) -> None:
    from diffusers import DiTPipeline

    prompts = Prompts(("1", 2), steps=4, seed=3)
    samples = list(PipelineRecording(dit, prompts, count=0).record(work_in(tmp_path), _quiet))
    assert len(samples) == 8
    pipeline: Any = DiTPipeline.from_pretrained(dit)
    pipeline.set_progress_bar_config(disable=True)
    heard: list[Tensor] = []
    forward = pipeline.transformer.forward

    def listening(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.append(hidden_states.clone())
        return forward(hidden_states, *args, **kwargs)

    pipeline.transformer.forward = listening
    for number, label in enumerate((1, 2)):
        dice = torch.Generator().manual_seed(3 + number)
        pipeline([label], num_inference_steps=4, generator=dice, output_type="latent")
    assert all(torch.equal(s["hidden_states"], h) for s, h in zip(samples, heard, strict=True))
    assert {*samples[0]} == {"hidden_states", "timestep", "class_labels"}


def _quiet(done: int, total: int, detail: str) -> None:
    """No progress."""


def test_recording__goes_on_without_drawing_again(
    dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = PipelineRecording(dit, Prompts((1, 2, 0), steps=4), count=6)
    loads = []
    load = record_pipeline.load_pipeline
    monkeypatch.setattr(record_pipeline, "load_pipeline", lambda f: loads.append(f) or load(f))

    def stop(done: int, total: int, detail: str) -> None:
        if done == 2:
            raise KeyError("stopped")

    work = work_in(tmp_path)
    with pytest.raises(KeyError, match="stopped"):
        recording.record(work, stop)
    drawn = {p.name: p.stat().st_mtime_ns for p in work.path.glob("drawn-*")}
    samples = list(recording.record(work, _quiet))
    assert 5 <= len(samples) <= 7
    assert len(loads) == 2
    for name, time in drawn.items():
        assert (work.path / name).stat().st_mtime_ns == time
    again = list(recording.record(work, _quiet))
    assert len(loads) == 2
    assert all(
        torch.equal(a["timestep"], s["timestep"]) for a, s in zip(again, samples, strict=True)
    )


def test_recording__mistakes(dit: Path, tmp_path: Path) -> None:
    work = work_in(tmp_path)
    with pytest.raises(PipelineUnusable, match="no_such_class"):
        PipelineRecording(dit, Prompts(("no_such_class",), steps=2)).record(work, _quiet)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(PipelineUnusable, match="not loadable"):
        PipelineRecording(tmp_path, Prompts((1,), steps=2)).record(work, _quiet)


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    return pipelines.save_pixart(tmp_path_factory.mktemp("pixart"))


class Planned(BaseException):
    """Everything is quantized; building kernels would tell nothing more."""


def test_prompts__a_text_pipeline_is_model_and_painter(pixart: Path, tmp_path: Path) -> None:
    """The folder of the pipeline is the model and draws the prompts; its layers are quantized for their tokens."""
    prompts, output = tmp_path / "prompts.yaml", tmp_path / "pixart.svdq"
    call = "call: {height: 16, width: 16, use_resolution_binning: false, max_sequence_length: 256}"
    prompts.write_text(f"prompts: [a red fox, a blue house, a fox]\n{call}\n")
    stages: list[str] = []

    def progress(event: svdqc.ProgressEvent) -> None:
        stages.append(event.stage)
        if event.stage == "plan":
            raise Planned

    with pytest.raises(Planned):
        svdqc.compile(
            str(pixart),
            output=output,
            recipe=Recipe(rank=4, refine_iterations=1),
            target="cpu:portable",
            calibration=str(prompts),
            steps=2,
            num_samples=5,
            progress=progress,
        )
    order = list(dict.fromkeys(stages))
    assert order == ["capture", "record", "calibrate", "quantize", "plan"]
    results = StoredResults(WorkFolder(output, resume=True))
    layers = [
        results.load(p.stem) for p in work_path(output).glob("*.safetensors") if "-" not in p.stem
    ]
    assert len(layers) >= 8
    assert all(0.0 < layer.metrics["error"] < 0.3 for layer in layers if layer.precision == "int4")
