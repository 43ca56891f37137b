"""Models to test with, written by the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_model(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Writes a model directory of these tensors; gives its path."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "test"}))
    save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
    return path


def gaussian(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Weights as trained ones are distributed."""
    return (0.02 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
