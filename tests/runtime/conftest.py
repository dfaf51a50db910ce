"""The tiny artifact, written once; the user's trust registry kept out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime import tiny

from svdqc.runtime.library import library_path


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny.compile_code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="session")
def artifact(code: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert library_path().is_file()
    path = tmp_path_factory.mktemp("artifact") / "tiny.svdq"
    tiny.write(path, code)
    return path


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
