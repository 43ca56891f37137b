"""Jobs over queries: what a query gives is quantized as a model that holds the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from models import gaussian, write_model

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowQuantV2,
    AsyncArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    QuantizationError,
)

AVERAGE = """
    SELECT a.component, a.tensor, a.shape, a.start, weighted_sum(0.5, a.weights, 0.5, b.weights) AS weights
    FROM first.weights a JOIN second.weights b ON a.tensor = b.tensor AND a.chunk = b.chunk
"""


def weight_files(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((model / "weights").iterdir())}


def manifest(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((model / "arrow_quant.json").read_text())
    return read


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def everything(model: Path) -> str:
    return f"SELECT * FROM weights('{model}')"


@pytest.fixture
def models(tmp_path: Path) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """Two models of the same tensors, and the means of these, computed as weighted_sum is specified."""
    shapes = {"a.weight": (300, 512), "b.weight": (64, 128), "a.bias": (300,)}
    tensors = [{name: gaussian(shape, seed=seed) for name, shape in shapes.items()} for seed in (1, 2)]
    # Half of a float is exact, so that the order of the roundings does not matter.
    means = {name: np.float32(0.5) * tensors[0][name] + np.float32(0.5) * tensors[1][name] for name in shapes}
    paths = {
        "first": write_model(tmp_path / "first", tensors[0]),
        "second": write_model(tmp_path / "second", tensors[1]),
    }
    return paths, means


def test_a_query_over_a_model_is_the_model(tiny_model: Path, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    expected = quantizer.quantize_diffusion_model(tiny_model, tmp_path / "expected")
    result = quantizer.quantize_query(everything(tiny_model), tmp_path / "found")
    assert weight_files(tmp_path / "found") == weight_files(tmp_path / "expected")
    assert list(result["tensors"]) == list(expected["tensors"])
    assert result.keys() == expected.keys()
    assert result["quantized_path"] == str(tmp_path / "found")
    assert f"the model is what this query gave: {everything(tiny_model)}" in result["notes"]
    assert manifest(tmp_path / "found")["source"]["name"] == "query"
    # There is nothing but the output, in which no file of the model is.
    assert names(tmp_path) == ["expected", "found", "tiny"]
    assert names(tmp_path / "found") == ["arrow_quant.json", "weights"]


def test_two_models_of_a_connection_are_averaged(
    models: tuple[dict[str, Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    paths, means = models
    config = DiffusionQuantConfig(bit_width=8, group_size=64)
    quantizer = ArrowQuantV2(mode="base")
    quantizer.quantize_model(write_model(tmp_path / "means", means), tmp_path / "expected", config)
    connection = arrow_quant_v2.connect(models=paths)
    quantizer.quantize_query(AVERAGE, tmp_path / "found", config, connection=connection)
    assert weight_files(tmp_path / "found") == weight_files(tmp_path / "expected")
    # The connection goes on.
    assert pa.table(connection.sql("SELECT count(*) AS n FROM first.tensors")).to_pylist() == [{"n": 3}]


def test_tables_of_python_are_models(tmp_path: Path) -> None:
    weights = gaussian((4, 64), seed=3)
    table = pa.table({
        "tensor": ["w", "w"],
        "shape": [[4, 64], [4, 64]],
        "start": [128, 0],
        "weights": pa.array([weights[2:].ravel(), weights[:2].ravel()], pa.list_(pa.float32())),
    })
    config = DiffusionQuantConfig(bit_width=8, group_size=32)
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(write_model(tmp_path / "model", {"w": weights}), tmp_path / "expected", config)
    connection = arrow_quant_v2.connect(tables={"rows": table})
    quantizer.quantize_query("SELECT * FROM rows", tmp_path / "found", config, connection=connection)
    assert weight_files(tmp_path / "found") == weight_files(tmp_path / "expected")


def test_progress_ends_at_one(tiny_model: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    ArrowQuantV2().quantize_query(
        everything(tiny_model), tmp_path / "out", None, lambda *said: told.append(said), progress_interval_s=0
    )
    assert told[0] == (0.0, "running the query")
    assert told[-1][0] == 1.0


def test_a_query_is_awaited(tiny_model: Path, tmp_path: Path) -> None:
    async def main() -> dict[str, Any]:
        return await AsyncArrowQuantV2().quantize_query(everything(tiny_model), tmp_path / "out")

    assert asyncio.run(main())["compression_ratio"] > 1
    assert names(tmp_path) == ["out", "tiny"]


def test_an_interrupted_query_is_resumed(big_model: Path, tmp_path: Path, slow_config: DiffusionQuantConfig) -> None:
    quantizer, query = ArrowQuantV2(), everything(big_model)
    expected = quantizer.quantize_model(big_model, tmp_path / "expected", slow_config)

    def interrupt(progress: float, message: str) -> None:
        if progress > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantizer.quantize_query(query, tmp_path / "out", slow_config, interrupt, progress_interval_s=0.01)
    assert names(tmp_path) == ["expected", "out.partial"]
    with pytest.raises(ConfigurationError, match="interrupted"):
        quantizer.quantize_query(query, tmp_path / "out", slow_config)
    result = quantizer.quantize_query(query, tmp_path / "out", slow_config, resume=True)
    assert result["resumed_parts"] > 0
    assert list(result["tensors"]) == list(expected["tensors"])
    assert names(tmp_path) == ["expected", "out"]


COLUMN = {
    "SELECT tensor, shape, start FROM {m}": "no column 'weights'",
    "SELECT tensor, shape, 'x' AS start, weights FROM {m}": "column 'start' of the query is Utf8, expected an integer",
}

ROWS = {
    "SELECT * FROM {m} WHERE tensor = 'a.weight' AND start > 0 OR tensor = 'b.weight' AND start < 0": "no rows",
    "SELECT tensor, shape, start + 1 AS start, weights FROM {m}": "a chunk has elements 1 to",
    "SELECT nothing FROM {m}": "nothing",
    "DROP TABLE t": "DDL not supported",
}


@pytest.mark.parametrize(("query", "message"), COLUMN.items())
def test_columns_are_checked(tiny_model: Path, tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        ArrowQuantV2().quantize_query(query.format(m=f"weights('{tiny_model}')"), tmp_path / "out")
    assert raised.value.field == "query"
    assert names(tmp_path) == ["tiny"]


@pytest.mark.parametrize(("query", "message"), ROWS.items())
def test_rows_are_checked(tiny_model: Path, tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises((ConfigurationError, QuantizationError), match=message):
        ArrowQuantV2().quantize_query(query.format(m=f"weights('{tiny_model}')"), tmp_path / "out")
    assert names(tmp_path) == ["tiny"]


def test_arguments_are_checked(tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    with pytest.raises(ConfigurationError, match="query is 3, allowed: SQL, as str") as raised:
        quantizer.quantize_query(3, tmp_path / "out")  # type: ignore[arg-type]
    assert raised.value.field == "query"
    with pytest.raises(ConfigurationError, match="connection is of type str") as raised:
        quantizer.quantize_query("SELECT 1", tmp_path / "out", connection="x")  # type: ignore[arg-type]
    assert raised.value.field == "connection"
    with pytest.raises(QuantizationError, match="calibration.parquet: no such file"):
        ArrowQuantV2(mode="base").quantize_query("SELECT 1", tmp_path / "out", calibration="calibration.parquet")
