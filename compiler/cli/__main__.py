"""`python -m svdqc.compiler.cli` is the same as `svdqc`."""

from svdqc.compiler.cli import main

main()
