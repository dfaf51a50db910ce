"""The options of every command that opens an artifact to run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def artifact_options(command: Decorated) -> Decorated:
    """Add the ARTIFACT argument, --threads, --device and --trust."""
    options = (
        click.argument("artifact", type=click.Path(path_type=Path)),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            default=0,
            help="Of the CPU. 0, the default: as many as this process may use.",
        ),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            metavar="NAME",
            help="cpu, cuda:0 (or another GPU), or auto: the first GPU if the file has code for it, else the CPU.",
        ),
        click.option(
            "--trust",
            is_flag=True,
            help="Run the file's machine code though it was compiled elsewhere. Code that this machine compiled "
            "needs no such word.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def inputs_option(made_up: bool) -> Callable[[Decorated], Decorated]:
    """Add --inputs; required, unless inputs can be made up."""
    default = " Default: random ones of the smallest sizes." if made_up else ""
    return click.option(
        "--inputs",
        "-i",
        "inputs_file",
        required=not made_up,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"The inputs by name, .npz or .safetensors.{default}",
    )
