"""Render templates in the house dialect: statements `//%`, comments `//#`, values `${…}`; undefined names fail."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from svdqc.compiler.targets.folders import templates_folder


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(str(templates_folder())),
        undefined=StrictUndefined,
        line_statement_prefix="//%",
        line_comment_prefix="//#",
        variable_start_string="${",
        variable_end_string="}",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **context: Any) -> str:
    """The text of `template` (relative to templates/) under `context`; it opens with what it computes."""
    return _environment().get_template(template).render(**context).lstrip("\n")
