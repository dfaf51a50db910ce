"""One call of a prepared artifact on the GPU, for tools that watch a process: run_once.py NAME.svdq"""

from __future__ import annotations

import sys
from pathlib import Path


def main(path: Path) -> int:
    import svdqc
    from svdqc.compiler.cli.artifact_inputs import artifact_inputs

    with svdqc.load(path, device="cuda:0", trust=True) as model:
        given = artifact_inputs(model, path.with_suffix(".inputs.npz"))
        for _ in range(2):  # launches one by one, then as a graph
            model(**given)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
