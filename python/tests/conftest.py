"""The models that most tests need."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from models import gaussian, write_model

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def digits_dit() -> Path:
    """The example model: 1.26 million BF16 weights in 27 matrices and 25 vectors. Not to be changed."""
    return REPOSITORY / "tests" / "data" / "digits-dit"


@pytest.fixture(scope="session")
def quantized_digits(digits_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model quantized by the default configuration. Not to be changed."""
    path = tmp_path_factory.mktemp("quantized") / "digits-int4"
    ArrowQuantV2().quantize_diffusion_model(digits_dit, path)
    return path


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A matrix and a convolution that are quantized, a vector and integers that are kept."""
    tensors = {
        "a.weight": gaussian((32, 256), "float32", 1),
        "a.bias": gaussian((32,), "float32", 2),
        "b.weight": gaussian((16, 8, 64), "float16", 3),
        "steps": np.arange(12, dtype=np.int64).reshape(3, 4),
    }
    return write_model(tmp_path / "tiny", tensors)


@pytest.fixture(scope="session")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 Mi F16 weights, 134 MB, whose eight tensors differ. Not to be changed."""
    random = np.random.default_rng(0)
    # Every F16 from 0 to 1 is as likely.
    weights = random.integers(0, 0x3C00, size=1 << 23, dtype=np.uint16).view(np.float16)
    tensors = {f"layers.{index}.weight": np.roll(weights, index).reshape(2048, 4096) for index in range(8)}
    return write_model(tmp_path_factory.mktemp("big") / "model", tensors)


# On a machine that stands still at the wrong moment, a job may come to its end before it is interrupted.
ATTEMPTS = 5


def interrupt_job(model: Path, out: Path, config: DiffusionQuantConfig) -> None:
    """Leaves what a job that is interrupted leaves: some of its parts are finished."""

    def interrupt(progress: float, message: str) -> None:
        if progress > 0.3:
            raise KeyboardInterrupt

    for _ in range(ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            ArrowQuantV2().quantize_model(model, out, config, interrupt, progress_interval_s=0.01)
        if not out.exists():
            return
        shutil.rmtree(out)
    pytest.fail("every job had come to its end before it was interrupted")


@pytest.fixture
def slow_config() -> DiffusionQuantConfig:
    """A configuration by which a job on the big model takes its time: on one thread, at one width after the other."""
    return DiffusionQuantConfig(num_threads=1, bit_width=2, min_accuracy=1.0)
