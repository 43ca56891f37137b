"""The Python of both READMEs runs as it is printed, one block after the other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import readme
from conftest import REPOSITORY

READMES = (REPOSITORY / "python" / "README.md", REPOSITORY / "README.md")
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("path", READMES, ids=("package", "project"))
def test_the_readme_runs(
    path: Path, digits_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dream-7b").symlink_to(digits_dit)
    names: dict[str, Any] = {}
    for number, block in enumerate(readme.blocks(path), 1):
        if HAS_TORCH or "import torch" not in block:
            exec(compile(block, f"{path}, block {number}", "exec"), names)
    assert "Progress: 100.0% - " in capsys.readouterr().out
    assert (tmp_path / "dream-7b-int2" / "arrow_quant.json").exists()


def test_both_readmes_have_the_same_sample() -> None:
    package, project = map(readme.blocks, READMES)
    assert package[0] == project[0]
