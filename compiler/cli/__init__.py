"""The command line: `svdqc compile | inspect | run | bench | tune | report | compare | verify | doctor`.

Starting costs the import of click and nothing else; each command is a module that is imported when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code: 0, 1 (a check failed), 2 (an error), 130."""
    try:
        import click  # noqa: F401
    except ImportError:
        print("svdqc: the command line needs click: pip install click", file=sys.stderr)
        sys.exit(2)
    from svdqc.compiler.cli.app import EXIT_INTERRUPTED, run

    code = run(sys.argv[1:] if arguments is None else list(arguments))
    if code == EXIT_INTERRUPTED:
        # Python would end itself by SIGINT, not with the code, where the signal fell into an exec() of an import.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
