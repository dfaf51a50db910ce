"""`svdqc report`: the numbers mean what they say, and the page stands on its own."""

from __future__ import annotations

import functools
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.quantize.layers import LAYER_B, make_layer
from torch import Tensor, nn

import svdqc
from svdqc.compiler.cli.commands import report as report_command
from svdqc.compiler.driver.report_ablation import VARIANTS, LayerData, ablation, trade_off
from svdqc.compiler.driver.report_api import report
from svdqc.compiler.driver.report_charts import Series, line_chart, ticks
from svdqc.compiler.driver.report_layers import coded_weight, histograms, singular_values, spectra
from svdqc.compiler.driver.report_page import page, write_whole
from svdqc.compiler.driver.report_pictures import BadPictures, draw_pictures, picture_maker
from svdqc.compiler.quantize.linear import LinearSamples, quantize_linear
from svdqc.compiler.quantize.recipe import Recipe

VOID = {"meta", "img", "br", "line", "rect", "circle", "path"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y


class Model(nn.Module):
    """A name that is no good in HTML shows that names are escaped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(16, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.out(x)
        return y


@functools.cache
def calls() -> list[dict[str, Tensor]]:
    dice = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(1, 64, 16, generator=dice)} for _ in range(6)]


def pictures(model: Any) -> list[tuple[str, np.ndarray]]:
    """A grey picture of what the model answers."""
    answer = np.asarray(model(**{k: v.numpy() for k, v in calls()[0].items()})["0"])
    grey = np.clip(128 + 40 * answer[0], 0, 255).astype(np.uint8)
    return [("<answer>", np.repeat(grey[:, :, None], 3, axis=2))]


@functools.cache
def found() -> dict[str, Any]:
    return report(
        Model().eval(),
        calls()[0],
        output=None,
        recipe=Recipe(rank=16),
        calibration=calls(),
        num_details=2,
        pictures=pictures,
        jobs=1,
    )


@functools.cache
def layer_data() -> LayerData:
    layer = make_layer(128, 192, LAYER_B, seed=2)
    return LayerData(
        "layer", layer.weight, LinearSamples(layer.calibration[:512]), layer.test[:256]
    )


class Outline(html.parser.HTMLParser):
    """Elements that were opened and not closed, and every address that is mentioned."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<line/>`: nothing stays open."""

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    return parser


def test_report__numbers_of_a_model() -> None:
    data = found()
    assert data["format"] == "svdqc-report-1"
    assert [row["name"] for row in data["layers"]] == [
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("up", "down")
    ]
    assert data["totals"]["num_layers"] == 4
    assert set(data["kept"]) == {"embed", "out"}
    assert data["calibrated"]
    assert 0 < data["output_error"] < max(row["error"] for row in data["layers"])
    for row in data["layers"]:
        assert row["rank"] == 16
        assert row["num_bytes"] < row["num_bytes_bf16"]
        assert 0 < row["error"] < 0.3
    assert len(data["details"]) == 2
    worst = max(data["layers"], key=lambda row: row["error"])
    assert worst["name"] in [d["name"] for d in data["details"]]
    assert json.loads(json.dumps(data)) == data


def test_report__page_stands_on_its_own() -> None:
    text = page(found(), title="a <b> & c")
    read = outline(text)
    assert read.mistakes == []
    assert read.open == []
    assert all(a.startswith("data:image/png;base64,") for a in read.addresses)
    assert len(read.addresses) == 2
    assert not re.search(r"https?://|@import|url\(", text)
    assert "a &lt;b&gt; &amp; c" in text
    assert "&lt;answer&gt;" in text
    assert "nan" not in re.findall(r'd="([^"]*)"', text)
    words = " ".join(read.text)
    for row in found()["layers"]:
        assert row["name"] in words
    for heading in (
        "Where the error is",
        "What each step is worth",
        "What rank buys",
        "All layers",
    ):
        assert heading in words
    assert len(text) < 300_000


def test_report__pictures_side_by_side() -> None:
    (picture,) = found()["pictures"]
    assert picture["caption"] == "<answer>"
    assert picture["before"].startswith("data:image/png;base64,")
    assert 15 < picture["psnr"] < 80


def test_report__from_the_weights_alone_with_rank_auto(tmp_path: Path) -> None:
    data = report(
        Model().eval(),
        calls()[0],
        output=tmp_path / "page.html",
        data=tmp_path / "page.json",
        recipe=Recipe(rank="auto"),
        num_details=1,
        jobs=1,
    )
    assert not data["calibrated"]
    assert data["judged_on"] == "the example inputs"
    assert all(row["sensitivity"] > 0 for row in data["layers"])
    assert data["allocation"]["spent_bytes"] <= data["allocation"]["budget_bytes"]
    assert "gptq" not in [row["key"] for row in data["ablation"]]
    assert json.loads((tmp_path / "page.json").read_text())["layers"] == data["layers"]
    assert outline((tmp_path / "page.html").read_text()).mistakes == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "page.json"]


def test_report__of_an_artifact(tmp_path: Path) -> None:
    path = tmp_path / "model.svdq"
    svdqc.compile(
        Model().eval(),
        calls()[0],
        output=path,
        target="cpu:portable",
        recipe=Recipe(rank=16),
        jobs=1,
    )
    done = CliRunner().invoke(
        report_command.command,
        [
            str(path),
            "-o",
            str(tmp_path / "a.html"),
            "--json",
            str(tmp_path / "a.json"),
            "--layers",
            "2",
        ],
    )
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["subject"] == "artifact"
    assert len(data["layers"]) == 4
    assert len(data["details"]) == 2
    text = (tmp_path / "a.html").read_text()
    assert outline(text).mistakes == []
    assert "What is inside this artifact" in text
    detail = data["details"][0]
    weight = Model().get_submodule(detail["name"]).weight.detach()
    true = singular_values(weight)
    assert detail["spectra"]["weight"][0] == pytest.approx(float(true[0]), rel=0.05)


def test_report__refuses_a_place_it_cannot_write_to() -> None:
    with pytest.raises(svdqc.SvdqcError, match="no folder"):
        report(Model(), calls()[0], output="/nonexistent/folder/page.html")


def test_write_whole__leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("svdqc.compiler.driver.report_page.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text() == "old"


def test_ablation__each_step_as_published() -> None:
    """The order of SVDQuant's figure 10 on a layer with outliers, and ours below all."""
    errors = ablation(layer_data(), Recipe(rank=24))
    assert list(errors) == [v.key for v in VARIANTS]
    assert errors["naive"] > errors["lorc"] > errors["svd"]
    assert errors["naive"] > errors["smoothing"] > errors["svdquant"]
    assert errors["svd"] > errors["svdquant"] > errors["gptq"] > errors["ours"]


def test_trade_off__more_rank_more_bytes_less_error() -> None:
    rows = trade_off(layer_data(), Recipe(gptq=False), (0, 16, 64, 256))
    assert [r["rank"] for r in rows] == [0, 16, 64]
    assert rows[0]["error"] > rows[1]["error"] > rows[2]["error"]
    assert rows[0]["num_bytes"] < rows[1]["num_bytes"] < rows[2]["num_bytes"]
    assert rows[1]["extra_work"] == pytest.approx(16 * (128 + 192) / (128 * 192))


def test_spectra__parts_add_up() -> None:
    data = layer_data()
    layer = quantize_linear(data.weight, data.samples, Recipe(rank=16))
    curves = spectra(data.weight, layer)
    assert curves["index"] == list(range(1, 129))
    exact = torch.linalg.svdvals(data.weight)
    assert torch.tensor(curves["weight"]) == pytest.approx(exact, rel=1e-3, abs=1e-4)
    smoothed = data.weight / layer.inv_smooth
    branch = layer.lora_up.float() @ layer.lora_down.float()
    assert curves["residual"][0] < curves["smoothed"][0]
    left = (smoothed - branch - coded_weight(layer)).norm() / smoothed.norm()
    assert left < 0.2


def test_singular_values__of_a_sample_where_both_sides_are_huge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("svdqc.compiler.driver.report_layers._SIDE_FOR_SPECTRA", 128)
    matrix = torch.randn(512, 16) @ torch.randn(16, 384)
    values = singular_values(matrix)
    assert values.numel() == 128
    assert float(values[0]) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=0.3)


def test_histograms__are_shares_and_show_outliers_gone() -> None:
    data = layer_data()
    layer = quantize_linear(data.weight, data.samples, Recipe(rank=16))
    bins = histograms(data.weight, data.judge, layer)
    for kind in ("activation", "weight"):
        for part in ("original", "coded"):
            assert sum(bins[kind][part]) == pytest.approx(1.0, abs=1e-3)
    peaks = bins["activation"]["peaks"]
    assert peaks["coded"] < 0.7 * peaks["original"]


def test_ticks() -> None:
    assert ticks(0.0, 10.0, False) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert ticks(0.5, 200.0, True) == [1.0, 10.0, 100.0]
    assert ticks(2.0, 7.0, True) == [2.0, 5.0]
    for high in (0.013, 0.4, 3.0, 87.0, 1e5):
        assert 3 <= len(ticks(0.0, high, False)) <= 6


def test_line_chart__stays_inside() -> None:
    points = [(float(i), 10.0**-i) for i in range(5)] + [(5.0, 0.0)]
    chart = line_chart([Series("s", "ours", points)], "x", "y", log_y=True)
    numbers = [float(n) for n in re.findall(r"[\d.]+", chart.lines[0].path)]
    assert len(numbers) == 10, "the zero is left out"
    assert all(chart.left <= x <= chart.width - chart.right + 0.1 for x in numbers[::2])
    assert all(chart.top - 0.1 <= y <= chart.height - chart.bottom + 0.1 for y in numbers[1::2])
    assert not any(math.isnan(n) for n in numbers)


@pytest.mark.parametrize("source", ["nowhere.py:draw", "no_such_module:draw", "json:no_such"])
def test_picture_maker__that_cannot_be_had(source: str) -> None:
    with pytest.raises(BadPictures, match=re.escape(source)):
        picture_maker(source)


def test_picture_maker__from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "drawing.py"
    path.write_text("def draw(model):\n    return [('x', model(y=1))]\n")
    maker = picture_maker(f"{path}:draw")
    pixels = np.zeros((2, 2, 3), np.uint8)
    drawn = draw_pictures(maker, lambda **_: pixels, path)
    assert [caption for caption, _ in drawn] == ["x"]
    with pytest.raises(BadPictures, match="uint8"):
        draw_pictures(maker, lambda **_: pixels.astype(np.float32), path)
    with pytest.raises(BadPictures, match="ZeroDivisionError"):
        draw_pictures(lambda model: 1 // 0, lambda **_: {}, path)  # type: ignore[arg-type]


def test_command__help_teaches() -> None:
    done = CliRunner().invoke(report_command.command, ["--help"])
    assert done.exit_code == 0
    for word in (
        "svdqc report flux.svdq",
        "--calibration",
        "--pictures",
        "--json",
        "--rank",
        "--budget",
    ):
        assert word in done.output
