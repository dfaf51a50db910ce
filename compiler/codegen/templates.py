"""Render templates in the house dialect: statements `//%`, comments `//#`, values `${…}`; undefined names fail."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from svdqc.compiler.targets.compile_cache import headers_digest
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


def sources_digest(template: str, source: str, folders: Sequence[Path]) -> str:
    """One name for the contents of what a kernel is made of: its template with those it extends and includes, and the
    headers that its rendered `source` includes from `folders`."""
    return _digest(template, tuple(sorted(set(_INCLUDE.findall(source)))), tuple(folders))


@cache
def _digest(template: str, headers: tuple[str, ...], folders: tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for text in _template_texts(template):
        total.update(hashlib.sha256(text.encode()).digest())
    included = "".join(f'#include "{name}"\n' for name in headers)
    total.update(headers_digest(included, folders).encode())
    return total.hexdigest()


def _template_texts(template: str) -> list[str]:
    """The text of a template, then of every other that it names, each once."""
    texts: dict[str, str] = {}
    waiting = [template]
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = (templates_folder() / name).read_text()
            waiting += _NAMED.findall(texts[name])
    return [texts[name] for name in sorted(texts)]


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_NAMED = re.compile(r'(?:extends|include|import|from)\s+"([^"]+\.j2)"')
