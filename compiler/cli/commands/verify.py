"""svdqc verify"""

from __future__ import annotations

from pathlib import Path

import click

from svdqc.compiler.cli.output import megabytes, output_options, print_json

HELP = """Check every byte and every plan of ARTIFACT, without running any of its code.

Every section is hashed, the weights included, and each plan is proved to stay inside its buffers for the largest sizes.
Works on any machine, whatever the artifact was compiled for.
"""


@click.command("verify", help=HELP)
@click.argument("artifact", type=click.Path(path_type=Path))
@output_options
def command(artifact: Path, as_json: bool, quiet: bool) -> None:
    from svdqc.runtime import verify

    verify(artifact)
    num_bytes = artifact.stat().st_size
    if as_json:
        print_json({"path": str(artifact), "ok": True, "num_bytes": num_bytes})
    elif not quiet:
        print(f"{artifact}: whole and sound ({megabytes(num_bytes)})")
