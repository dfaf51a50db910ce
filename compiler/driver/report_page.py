"""The report as one HTML file: everything inline, nothing fetched; works by opening the file.

The data (report_model.py, report_artifact.py) becomes charts (report_charts.py), and templates/report prints them.
Names and texts come from files and are escaped there.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdqc.compiler.codegen.templates import render
from svdqc.compiler.driver.report_charts import (
    Chart,
    Series,
    column_chart,
    line_chart,
    number_text,
    percent_text,
    row_chart,
)
from svdqc.compiler.passes.linear_groups import block_name


def page(report: Mapping[str, Any], title: str = "") -> str:
    """The HTML text of a report."""
    layers = report["layers"]
    return render(
        "report/page.html.j2",
        report=report,
        title=title or report["name"],
        tiles=_tiles(report),
        errors=_errors_chart(layers),
        ranks=_ranks_chart(layers),
        ablation=_ablation_chart(report["ablation"]),
        trade_off=_trade_off_chart(report["trade_off"]),
        details=[_detail(d) for d in report["details"]],
        sensitive=any(row["sensitivity"] is not None for row in layers),
        precisions=sorted({row["precision"] for row in layers}),
        percent=percent_text,
        number=number_text,
        size=size_text,
    )


def write_page(path: str | os.PathLike[str], report: Mapping[str, Any]) -> int:
    """Write the page, whole or not at all; returns its bytes."""
    return write_whole(path, page(report))


def write_whole(path: str | os.PathLike[str], text: str) -> int:
    """`text` to a file beside its place, then moved there."""
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    data = text.encode()
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(data)


def picture_url(pixels: Any) -> str:
    """[height, width, 3] uint8 as a data: URL of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def size_text(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(number, unit or word beside it, what it is)."""
    totals = report["totals"]
    ratio = totals["bytes_16_bit"] / max(totals["bytes_quantized"], 1)
    found = [
        (f"{ratio:.1f}×", "smaller", f"{size_text(totals['bytes_16_bit'])} of 16-bit weights in "
         f"{size_text(totals['bytes_quantized'])}"),
    ]  # fmt: skip
    if report["output_error"] is not None:
        error = report["output_error"]
        decibels = -20 * math.log10(max(error, 1e-12))
        found.append(
            (percent_text(error), "off", f"the model's output, relative; {decibels:.1f} dB")
        )
    errors = [row["error"] for row in report["layers"] if row["error"] is not None]
    if errors:
        worst, middle = max(errors), sorted(errors)[len(errors) // 2]
        found.append(
            (
                percent_text(middle),
                "per layer",
                f"median output error; the worst {percent_text(worst)}",
            )
        )
    share = totals["branch_bytes"] / max(totals["bytes_quantized"], 1)
    found.append(
        (percent_text(share), "in 16 bits", "share of the low-rank branches in those bytes")
    )
    found.append(
        (str(totals["num_layers"]), "layers", f"quantized; {totals['num_kept']} kept as they were")
    )
    return found


def _errors_chart(layers: list[dict[str, Any]]) -> Chart | None:
    shown = [(row, _error_of(row)) for row in layers]
    known = [(row, error) for row, error in shown if error is not None]
    if not known:
        return None
    blocks = list(dict.fromkeys(block_name(row["name"]) for row, _ in known))
    return column_chart(
        [error for _, error in known],
        [f"block{blocks.index(block_name(row['name'])) % 2}" for row, _ in known],
        [f"{row['name']}: {percent_text(error)}, rank {row['rank']}" for row, error in known],
        "error",
        percent=True,
    )


def _ranks_chart(layers: list[dict[str, Any]]) -> Chart | None:
    """Only where ranks differ."""
    ranks = [row["rank"] for row in layers]
    if len(set(ranks)) < 2:
        return None
    return column_chart(
        [float(r) for r in ranks],
        [f"p-{row['precision']}" for row in layers],
        [f"{row['name']}: {row['precision']}, rank {row['rank']}" for row in layers],
        "rank",
        height=130.0,
    )


def _error_of(row: Mapping[str, Any]) -> float | None:
    found = row["error"] if row["error"] is not None else row["weight_error"]
    return None if found is None else float(found)


def _ablation_chart(rows: list[dict[str, Any]]) -> Chart | None:
    if not rows:
        return None
    return row_chart(
        [row["error"] for row in rows],
        [row["title"] for row in rows],
        ["ours" if row["key"] == "ours" else "plain" for row in rows],
        [row["errors"] for row in rows],
    )


def _trade_off_chart(rows: list[dict[str, Any]]) -> Chart | None:
    if len(rows) < 2:
        return None
    tips = [
        f"rank {r['rank']}: {percent_text(r['error'])}, {size_text(r['num_bytes'])}" for r in rows
    ]
    points = [(r["num_bytes"] / 1e6, r["error"]) for r in rows]
    series = [Series("error", "ours", points, dotted=True, tooltips=tips)]
    return line_chart(series, "MB of these layers", "error", from_zero=True, percent=True)


def _detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    spectrum, bins = detail["spectra"], detail["histograms"]
    curves = [
        Series(label, style, list(zip(spectrum["index"], spectrum[key], strict=True)))
        for key, label, style in (
            ("weight", "weight", "before"),
            ("smoothed", "smoothed", "middle"),
            ("residual", "left for the codes", "ours"),
        )
    ]
    return {
        **detail,
        "spectrum_chart": line_chart(
            curves,
            "singular value",
            "size",
            log_x=True,
            log_y=True,
            key_left=True,
            marks=[(spectrum["rank"] or 1, f"rank {spectrum['rank']}")],
        ),
        "histogram_charts": [
            (name, bins[name]["peaks"], _histogram_chart(bins[name]))
            for name in ("activation", "weight")
            if name in bins
        ],
        "channel_chart": _channel_chart(detail.get("channels")),
        "rank_chart": _rank_chart(detail.get("trade_off") or []),
    }


def _histogram_chart(bins: Mapping[str, Any]) -> Chart:
    count = len(bins["original"])
    floor = min(v for key in ("original", "coded") for v in bins[key] if v > 0)
    centers = [bins["edge"] * (2 * (i + 0.5) / count - 1) for i in range(count)]
    series = [
        Series(
            label,
            style,
            [(x, max(y, floor)) for x, y in zip(centers, bins[key], strict=True)],
            filled=True,
        )
        for key, label, style in (
            ("original", "as it was", "before"),
            ("coded", "as it is coded", "ours"),
        )
    ]
    return line_chart(series, "value / RMS", "share", log_y=True)


def _channel_chart(peaks: Mapping[str, Any] | None) -> Chart | None:
    if peaks is None:
        return None
    count = len(peaks["original"])
    series = [
        Series(label, style, [(100.0 * i / max(count - 1, 1), y) for i, y in enumerate(peaks[key])])
        for key, label, style in (
            ("original", "as it was", "before"),
            ("coded", "as it is coded", "ours"),
        )
    ]
    return line_chart(series, "channels by size, %", "peak / RMS", log_y=True)


def _rank_chart(rows: list[dict[str, Any]]) -> Chart | None:
    if len(rows) < 2:
        return None
    points = [(float(r["rank"]), r["error"]) for r in rows]
    tips = [f"rank {r['rank']}: {percent_text(r['error'])}" for r in rows]
    series = [Series("error", "ours", points, dotted=True, tooltips=tips)]
    return line_chart(
        series,
        "rank",
        "error",
        from_zero=True,
        percent=True,
        x_ticks=[float(r["rank"]) for r in rows],
    )
