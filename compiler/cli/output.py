"""What commands print: tables for people, JSON for programs. Standard output holds the result and nothing else."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import click

WIDE = 160
FIRST_COLUMNS = ("name", "layer", "op", "target")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def output_options(command: Decorated) -> Decorated:
    """Add --json and --quiet."""
    quiet = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    return quiet(as_json(command))


def print_json(value: Any) -> None:
    """JSON on standard output; infinity and NaN, which JSON lacks, become null."""
    print(json.dumps(_finite(value), indent=2, default=_plain, allow_nan=False), flush=True)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    print_table(title, ("", ""), [(name, value) for name, value in facts.items()])


def print_report(report: Mapping[str, Any], title: str = "") -> None:
    """A report of any depth: its single values first, then each list of records as a table."""
    single = {name: value for name, value in report.items() if not _is_large(value)}
    if single:
        print_facts(title, {_words(name): value for name, value in single.items()})
    for name, value in report.items():
        if not _is_large(value):
            continue
        heading = f"{title}, {_words(name)}" if title else _words(name)
        if isinstance(value, Mapping):
            print_report(value, heading)
        else:
            keys = dict.fromkeys(key for record in value for key in record)
            columns = sorted(keys, key=lambda key: key not in FIRST_COLUMNS)
            rows = [[record.get(column, "") for column in columns] for record in value]
            print_table(f"{heading} ({len(rows)})", [_words(c) for c in columns], rows)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A titled table on standard output, drawn by rich where it is installed."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _print_plain_table(title, columns, cells, numeric)
        return
    headed = any(columns)
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if headed else None,
        show_header=headed,
        pad_edge=False,
    )
    for column, is_numeric in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if is_numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(width=WIDE, highlight=False, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    print("\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n")


def _print_plain_table(
    title: str, columns: Sequence[str], cells: list[list[str]], numeric: list[bool]
) -> None:
    rows = [list(columns), *cells] if any(columns) else cells
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
    if title:
        print(title)
    for row in rows:
        padded = [
            text.rjust(width) if is_numeric else text.ljust(width)
            for text, width, is_numeric in zip(row, widths, numeric, strict=True)
        ]
        print("  " + "  ".join(padded).rstrip())
    print()


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e4 else f"{num_bytes:.0f} B"


def _is_large(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)}={_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return ", ".join(map(_cell, value))
    return printable(str(value))


def printable(text: str) -> str:
    """`text` with control characters escaped: names in a file must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%x").replace(",", "") or "0")
    except ValueError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """JSON for what the json module does not know: numpy scalars and arrays, paths, dtypes."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
