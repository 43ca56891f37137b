"""What a calibration gains, measured by running the example model and on a range that drifts: figures that must hold.

`benches/diffusion.py` prints them all, those of samples too; docs/diffusion.md has them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig, connect, load_quantized

KEEP_ALL = {"sensitive_layer_patterns": [".*"]}
EDGES = {"sensitive_layer_names": ["patch_embed", "proj_out", "pos_embed", "label_embed"]}

Parameters = dict[str, list[tuple[int, int, int, float, int, np.ndarray | None]]]


class Figures(NamedTuple):
    """SQNR in dB: at the worst timestep, and in the mean."""

    worst: float
    mean: float

    def gain(self, over: Figures) -> Figures:
        return Figures(self.worst - over.worst, self.mean - over.mean)


def figures(decibels: list[float]) -> Figures:
    return Figures(min(decibels), float(np.mean(decibels)))


# A range that drifts: normal inputs of one channel, whose deviation grows eightfold over a hundred steps

STEPS, SAMPLES, BINS = 100, 2048, 2048


class Drift(NamedTuple):
    inputs: list[np.ndarray]
    path: Path

    def groups(self, count: int, boundaries: str) -> list[dict[str, Any]]:
        query = f"SELECT * FROM time_groups('{self.path}', {count}, '{boundaries}')"
        rows: list[dict[str, Any]] = connect().sql(query).to_pyarrow().to_pylist()
        return rows

    def figures(self, groups: list[dict[str, Any]]) -> Figures:
        """Of the inputs, each quantized with the parameters of the group that has its step."""
        decibels = []
        for t, values in enumerate(self.inputs):
            [group] = [group for group in groups if group["t_start"] <= t < group["t_end"]]
            scale, zero_point = group["scale"], group["zero_point"]
            codes = np.clip(np.round(values / scale) + zero_point, 0, 2 ** group["bits"] - 1)
            noise = values - scale * (codes - zero_point)
            decibels.append(float(10 * np.log10(np.square(values).sum() / np.square(noise).sum())))
        return figures(decibels)


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Drift:
    random = np.random.default_rng(0)
    deviations = 8 ** (np.arange(STEPS) / (STEPS - 1))
    inputs = [(deviation * random.standard_normal(SAMPLES)).astype(np.float32) for deviation in deviations]
    # A little wider than the greatest value, so that no rounding leaves it out of the last bin.
    bound = np.float32(1.0001 * max(np.abs(values).max() for values in inputs))
    edges = np.linspace(-bound, bound, BINS + 1)
    columns = {
        "tensor": ["layer.weight"] * STEPS,
        "timestep": range(STEPS),
        "samples": [SAMPLES] * STEPS,
        "channel_min": [[values.min()] for values in inputs],
        "channel_max": [[values.max()] for values in inputs],
        "channel_mean_square": [[np.square(values).mean()] for values in inputs],
        "histogram": [np.histogram(values, edges)[0].astype(float) for values in inputs],
        "histogram_min": np.full(STEPS, -bound),
        "histogram_max": np.full(STEPS, bound),
    }
    path = tmp_path_factory.mktemp("drift") / "calibration.parquet"
    pq.write_table(pa.table(columns), path)
    return Drift(inputs, path)


def test_ten_groups_of_a_drifting_range_gain_over_one(drift: Drift) -> None:
    one, ten = (drift.figures(drift.groups(count, "optimal")) for count in (1, 10))
    gain = ten.gain(over=one)
    assert gain.mean >= 6.5
    assert gain.worst >= 12.0


@pytest.mark.parametrize("count", (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20))
def test_optimal_groups_are_never_worse_than_equal_ones(drift: Drift, count: int) -> None:
    optimal, equal = (drift.groups(count, boundaries) for boundaries in ("optimal", "equal"))
    # There may be fewer, where more gain less than half a dB.
    assert len(optimal) <= len(equal) == count
    gain = drift.figures(optimal).gain(over=drift.figures(equal))
    # They are chosen by histograms, whose bins tell a little less than the inputs.
    assert gain.mean >= -0.02
    assert gain.worst >= -0.02


# The example model


class Model:
    """The example, what is made of it, and how well that predicts the noise by its own evaluate.py."""

    def __init__(self, path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._directory = path, directory
        spec = importlib.util.spec_from_file_location("digits_dit_evaluate", path / "evaluate.py")
        assert spec is not None and spec.loader is not None
        self._evaluate: Any = importlib.util.module_from_spec(spec)
        # No file is to be written beside the model.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(self._evaluate)
        self.weights: dict[str, np.ndarray] = self._evaluate.load(path / "model.safetensors")
        with np.load(path / "reference.npz") as recorded:
            steps = sorted(int(name[2:]) for name in recorded if name.startswith("x_"))
            self._inputs = {t: (recorded[f"x_{t}"], t, recorded[f"y_{t}"]) for t in steps}
            outputs = {t: recorded[f"out_{t}"] for t in steps}
        original = self._evaluate.DiT(self.weights)
        self._outputs = {t: original(*inputs) for t, inputs in self._inputs.items()}
        for t, output in outputs.items():
            np.testing.assert_allclose(self._outputs[t], output, atol=1e-3)

    def quantize(self, *, calibrated: bool = True, **fields: Any) -> Path:
        """Makes INT4 or INT2 in groups of 64, whatever the error."""
        out = self._directory / str(len(list(self._directory.iterdir())))
        config = DiffusionQuantConfig(group_size=64, min_accuracy=0.0, **fields)
        table = self.path / "calibration.parquet" if calibrated else None
        result = ArrowQuantV2().quantize_diffusion_model(self.path, out, config, calibration=table)
        assert result["time_aware"] is calibrated
        return out

    def by_timestep(self, out: Path, *, activations: bool) -> list[float]:
        """SQNR of the noise that a quantized model predicts, its activations being quantized or not, at each timestep."""
        weights = {name: tensor.numpy("float32") for name, tensor in load_quantized(out).items()}
        parameters: Parameters = {}
        if activations:
            connection = connect(models={"m": out})
            factors = {}
            if (out / "smoothing.parquet").exists():
                rows = connection.sql("SELECT tensor, smooth FROM m.smoothing").to_pyarrow().to_pylist()
                factors = {row["tensor"]: np.array(row["smooth"], np.float32) for row in rows}
            for name, smooth in factors.items():
                weights[name] = weights[name] * smooth
            for row in connection.sql("SELECT * FROM m.activations").to_pyarrow().to_pylist():
                group = row["t_start"], row["t_end"], row["bits"], row["scale"], row["zero_point"]
                parameters.setdefault(row["tensor"], []).append((*group, factors.get(row["tensor"])))
        model = self._evaluate.DiT(weights, parameters)
        found = []
        for t, inputs in self._inputs.items():
            output = self._outputs[t]
            found.append(float(10 * np.log10(np.square(output).sum() / np.square(output - model(*inputs)).sum())))
        return found


@pytest.fixture(scope="module")
def model(digits_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Model(digits_dit, tmp_path_factory.mktemp("figures"), monkeypatch)


@pytest.fixture(scope="module")
def measure(model: Model) -> Callable[..., Figures]:
    """Makes a model by these fields, and tells how well it predicts the noise with quantized activations."""
    return lambda **fields: figures(model.by_timestep(model.quantize(**fields), activations=True))


def test_activations_in_ten_groups(measure: Callable[..., Figures]) -> None:
    found = measure(**KEEP_ALL, num_time_groups=10, enable_spatial=False)
    assert found.worst >= 9.0
    assert found.mean >= 32.7


def test_smoothed_activations_in_ten_groups(measure: Callable[..., Figures]) -> None:
    found = measure(**KEEP_ALL, num_time_groups=10)
    assert found.worst >= 9.0
    assert found.mean >= 33.7


@pytest.mark.parametrize("smoothed", (False, True), ids=("as they are", "smoothed"))
def test_ten_groups_gain_over_one_with_weights_of_four_bits(measure: Callable[..., Figures], smoothed: bool) -> None:
    one, ten = (measure(bit_width=4, num_time_groups=count, enable_spatial=smoothed) for count in (1, 10))
    gain = ten.gain(over=one)
    assert gain.worst >= 1.0
    assert gain.mean >= 0.25


@pytest.mark.parametrize(
    ("bits", "kept"), ((4, {}), (4, EDGES), (2, EDGES)), ids=("INT4", "INT4 but the edges", "INT2 but the edges")
)
def test_weights_by_importance_predict_better(model: Model, bits: int, kept: dict[str, Any]) -> None:
    plain = model.quantize(bit_width=bits, **kept, calibrated=False)
    weighted = model.quantize(bit_width=bits, **kept, enable_spatial=False)
    sizes = [sum(file.stat().st_size for file in (out / "weights").iterdir()) for out in (plain, weighted)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    before, after = (figures(model.by_timestep(out, activations=False)) for out in (plain, weighted))
    gain = after.gain(over=before)
    assert gain.worst >= 0.5
    assert gain.mean >= 0.5


def test_smoothing_leaves_the_outputs_of_layers(model: Model) -> None:
    out = model.quantize(bit_width=4)
    quality = ArrowQuantV2().validate_quality(model.path, out, calibration=model.path / "calibration.parquet")
    assert len(quality["layers"]) == 25
    errors = [layer["smoothing_error"] for layer in quality["layers"] if layer["smoothing_error"] is not None]
    assert errors
    assert max(errors) < 1e-5
    assert all(np.isfinite(layer["worst_output_sqnr_db"]) for layer in quality["layers"])
