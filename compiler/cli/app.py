"""The group of commands, and what becomes of errors and interruptions."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

import svdqc
from svdqc.compiler.cli.output import printable
from svdqc.errors import SvdqcError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

# name -> first line of its help, in the order of use. A command is the module of its name in `commands/`, which
# is imported when the command is called.
COMMANDS = {
    "compile": "Compile a model to one .svdq file.",
    "inspect": "Tell what a compilation would do, or what is inside an artifact.",
    "run": "Run an artifact on inputs from a file.",
    "bench": "Measure an artifact: latency, and where the time goes.",
    "tune": "Measure a model's kernels on this machine, for `compile --tuning`.",
    "report": "Show where a quantization loses, as one HTML page.",
    "compare": "Measure how far an artifact's outputs are from its reference or its model.",
    "verify": "Check every byte and every plan of an artifact.",
    "doctor": "Check this machine: what works, what is missing, how to get it.",
}

HELP = """Compile a diffusion model to one 4-bit file, and run it without PyTorch.

\b
  svdqc inspect model.onnx                  what would be quantized, kept, fused
  svdqc compile model.onnx -o model.svdq    do it
  svdqc run model.svdq --inputs in.npz -o out.npz
  svdqc doctor                              what this machine can do

Every command explains itself: svdqc compile --help
"""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"svdqc.compiler.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(svdqc.__version__, prog_name="svdqc")
def group() -> None:
    """Nothing is shared between commands."""


def run(arguments: list[str]) -> int:
    """Execute one command line; returns its exit code. Says every error on standard error."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = group.main(arguments, prog_name="svdqc", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SvdqcError as error:
        print(f"svdqc: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        print("\nsvdqc: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has left (`| head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that unfinished files are removed on the way out.
    sys.exit(128 + number)
