"""Jobs that are given a calibration: what comes of it, what is refused, and that nothing does without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import gaussian, write_model

from arrow_quant_v2 import (
    ArrowQuantError,
    ArrowQuantV2,
    AsyncArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    MetadataError,
    QuantizationError,
    ValidationError,
    connect,
    load_quantized,
)
from arrow_quant_v2.jobs import QuantizeJob

Rows: TypeAlias = list[dict[str, Any]]

# Of each layer, its input channels.
CHANNELS = {"conv.weight": 8, "in.weight": 64, "out.weight": 96}
TIMESTEPS = range(0, 1000, 100)
SAMPLES = 64

WEIGHTS = {
    "conv.bias": gaussian((24,), seed=1),
    "conv.weight": gaussian((24, 8, 3, 3), seed=2),
    "embed.weight": gaussian((10, 64), seed=3),
    "in.weight": gaussian((96, 64), seed=4),
    "out.weight": gaussian((64, 96), "float16", seed=5),
}

LAYER: dict[str, Any] = {
    "tensor": str,
    "state": str,
    "channels": int,
    "timesteps": int,
    "time_groups": int,
    "smoothing_alpha": (float, type(None)),
    "activation_sqnr_db": float,
    "worst_activation_sqnr_db": float,
    "clipping_gain_db": float,
    "time_groups_gain_db": float,
    "worst_time_groups_gain_db": float,
    "smoothing_gain_db": float,
    "importance_gain_db": (float, type(None)),
}

QUALITY: dict[str, Any] = {
    "tensor": str,
    "state": str,
    "timesteps": int,
    "time_groups": int,
    "activation_sqnr_db": float,
    "worst_activation_sqnr_db": float,
    "loss_db": float,
    "worst_loss_db": float,
    "smoothing_error": (float, type(None)),
    "output_sqnr_db": float,
    "worst_output_sqnr_db": float,
}

# Columns of the table of activation parameters; the first of them are those of the table of time groups.
GROUP = ["tensor", "state", "time_group", "t_start", "t_end", "timesteps"]
ACTIVATION = [*GROUP, "bits", "scale", "zero_point", "clip", "sqnr_db", "loss_db", "worst_loss_db"]

# Eight bits, and few layers that are so small: figures of weights are not what is tested.
CONFIG: dict[str, Any] = {"bit_width": 8, "group_size": 32}


def config(**fields: Any) -> DiffusionQuantConfig:
    return DiffusionQuantConfig(**CONFIG | fields)


def measured(tensor: str, channels: int, timestep: int, scale: float = 1.0) -> dict[str, Any]:
    """A row of inputs that get eight times as wide over the timesteps, and have channels that are wider than others."""
    random = np.random.default_rng([channels, timestep])
    inputs = random.standard_normal((SAMPLES, channels)) * scale * 8 ** (timestep / TIMESTEPS[-1])
    inputs[:, ::7] *= 20
    return {
        "tensor": tensor,
        "timestep": timestep,
        "samples": SAMPLES,
        "channel_min": inputs.min(0).tolist(),
        "channel_max": inputs.max(0).tolist(),
        "channel_mean_square": np.square(inputs).mean(0).tolist(),
    }


def measured_rows() -> Rows:
    return [measured(tensor, channels, timestep) for tensor, channels in CHANNELS.items() for timestep in TIMESTEPS]


def table_of(rows: Rows) -> pa.Table:
    floats = pa.list_(pa.float32())
    columns = {"tensor": pa.string(), "timestep": pa.int64(), "state": pa.string(), "batch": pa.int64()}
    columns |= {"samples": pa.int64(), "channel_min": floats, "channel_max": floats, "channel_mean_square": floats}
    schema = pa.schema({name: kind for name, kind in columns.items() if any(name in row for row in rows)})
    return pa.Table.from_pylist(rows, schema)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers and a convolution that are calibrated, an embedding that is not. Not to be changed."""
    return write_model(tmp_path_factory.mktemp("original") / "model", WEIGHTS)


@pytest.fixture(scope="module")
def calibration() -> pa.Table:
    return table_of(measured_rows())


@pytest.fixture(scope="module")
def calibrated(model: Path, calibration: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it is quantized with the calibration. Not to be changed."""
    out = tmp_path_factory.mktemp("quantized") / "calibrated"
    ArrowQuantV2().quantize_diffusion_model(model, out, config(), calibration=calibration)
    return out


def files(out: Path, under: str = "") -> dict[str, bytes]:
    """The content of every file but the manifest."""
    found = [path for path in (out / under).rglob("*") if path.is_file() and path.name != "arrow_quant.json"]
    assert found
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def query(out: Path, sql: str) -> Rows:
    rows: Rows = connect(models={"m": out}).sql(sql).to_pyarrow().to_pylist()
    return rows


# ---------------------------------------------------------------- what comes of a calibration


def test_the_result_tells_of_every_layer(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    result = quantizer.quantize_diffusion_model(model, out, config(), calibration=calibration)
    assert (result["time_aware"], result["reason"]) == (True, None)
    assert [layer["tensor"] for layer in result["layers"]] == list(CHANNELS)
    for layer in result["layers"]:
        assert layer.keys() == LAYER.keys()
        assert all(isinstance(layer[key], kind) for key, kind in LAYER.items()), layer
        assert (layer["state"], layer["channels"]) == ("", CHANNELS[layer["tensor"]])
        assert layer["timesteps"] == len(TIMESTEPS) and 1 < layer["time_groups"] <= len(TIMESTEPS)
        # Every seventh channel is wider than the others, and the last timestep than the first.
        assert 0 <= layer["smoothing_alpha"] <= 1 and layer["smoothing_gain_db"] > 0.5
        assert layer["worst_time_groups_gain_db"] > 6
        assert 20 < layer["worst_activation_sqnr_db"] <= layer["activation_sqnr_db"]
        assert layer["importance_gain_db"] is not None
    assert json.loads((out / "arrow_quant.json").read_text())["layers"] == result["layers"]
    assert not [note for note in result["notes"] if "calibration" in note]
    # What the calibration became is part of the size.
    stored = sum(len(content) for name, content in files(out).items() if name != "config.json")
    assert result["model_size_mb"] == stored / 1e6
    # It is the same without a calibration, but for what is of one.
    without = quantizer.quantize_diffusion_model(model, tmp_path / "without", config())
    assert without.keys() == result.keys()
    assert (without["time_aware"], without["reason"], without["layers"]) == (False, "no calibration", [])
    assert [note for note in without["notes"] if "calibration" in note]


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("time_aware", [False, True])
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_fields_and_calibration_decide_together(
    is_calibrated: bool, time_aware: bool, spatial: bool, model: Path, calibration: pa.Table, tmp_path: Path
) -> None:
    result = ArrowQuantV2().quantize_diffusion_model(
        model,
        tmp_path / "out",
        config(enable_time_aware=time_aware, enable_spatial=spatial),
        calibration=calibration if is_calibrated else None,
    )
    reason = "enable_time_aware is false" if is_calibrated else "no calibration"
    expected = (True, None) if is_calibrated and time_aware else (False, reason)
    assert (result["time_aware"], result["reason"]) == expected
    assert len(result["layers"]) == (len(CHANNELS) if is_calibrated else 0)
    for layer in result["layers"]:
        assert (layer["time_groups"] > 1) is time_aware
        assert (layer["importance_gain_db"] is not None) is time_aware
        assert (layer["smoothing_alpha"] is not None) is spatial
    written = {name for name in files(tmp_path / "out") if "/" not in name}
    expected_files = {"activations.parquet"} if is_calibrated else set()
    assert written - {"config.json"} == expected_files | ({"smoothing.parquet"} if is_calibrated and spatial else set())


def test_the_configuration_of_groups(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    fields: list[dict[str, Any]] = [
        {"num_time_groups": 5, "time_group_boundaries": "equal"},
        {"num_time_groups": 3},
        {"num_time_groups": 1},
    ]
    for number, changed in enumerate(fields):
        out = tmp_path / f"out-{number}"
        result = quantizer.quantize_diffusion_model(model, out, config(**changed), calibration=calibration)
        groups = [layer["time_groups"] for layer in result["layers"]]
        if "time_group_boundaries" in changed:
            assert groups == [5, 5, 5]
            timesteps = query(out, "SELECT timesteps FROM m.time_groups")
            assert [row["timesteps"] for row in timesteps] == [2] * 15
        else:
            assert max(groups) == changed["num_time_groups"]


def test_the_tables_of_a_calibrated_model(calibrated: Path) -> None:
    activations = query(calibrated, "SELECT * FROM m.activations ORDER BY tensor, time_group")
    assert list(activations[0]) == ACTIVATION
    assert {row["tensor"] for row in activations} == CHANNELS.keys()
    for tensor in CHANNELS:
        rows = [row for row in activations if row["tensor"] == tensor]
        assert [row["time_group"] for row in rows] == list(range(len(rows)))
        # Each timestep is in one group.
        ends = [0, *(row["t_end"] for row in rows)]
        assert ends == [*(row["t_start"] for row in rows), 1000]
        inside = [sum(row["t_start"] <= t < row["t_end"] for t in TIMESTEPS) for row in rows]
        assert [row["timesteps"] for row in rows] == inside and sum(inside) == len(TIMESTEPS)
        for row in rows:
            assert row["bits"] == 8 and row["scale"] > 0 and 0 <= row["zero_point"] <= 255
            assert 0 < row["clip"] < 1.1 and 0 <= row["loss_db"] <= row["worst_loss_db"] < row["sqnr_db"]
    groups = query(calibrated, "SELECT * FROM m.time_groups ORDER BY tensor, time_group")
    assert groups == [{name: row[name] for name in GROUP} for row in activations]

    smoothing = query(calibrated, "SELECT * FROM m.smoothing ORDER BY tensor")
    assert [list(row) for row in smoothing] == [["tensor", "alpha", "smooth"]] * 3
    assert {row["tensor"]: len(row["smooth"]) for row in smoothing} == CHANNELS
    for row in smoothing:
        factors = np.array(row["smooth"])
        assert np.isfinite(factors).all() and factors.min() > 0
        # Where inputs are wider.
        assert factors[::7].min() > np.delete(factors, np.s_[::7]).max()


def test_the_tables_are_not_there_without_a_calibration(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(model, tmp_path / "plain", config())
    unsmoothed = config(enable_spatial=False)
    quantizer.quantize_diffusion_model(model, tmp_path / "unsmoothed", unsmoothed, calibration=calibration)
    for out, names in [("plain", ["activations", "time_groups", "smoothing"]), ("unsmoothed", ["smoothing"])]:
        for name in names:
            with pytest.raises(ArrowQuantError, match=name):
                query(tmp_path / out, f"SELECT * FROM m.{name}")


def test_states_and_batches(model: Path, tmp_path: Path) -> None:
    rows = [row | {"state": state} for row in measured_rows() for state in ("", "masked")]
    # Two measurements of each, which are merged.
    rows = [row | {"batch": batch} for row in rows for batch in range(2)]
    result = ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out", config(), calibration=table_of(rows))
    assert [(layer["tensor"], layer["state"]) for layer in result["layers"]] == [
        (tensor, state) for tensor in CHANNELS for state in ("", "masked")
    ]
    states = query(tmp_path / "out", "SELECT state, sum(timesteps) AS n FROM m.time_groups GROUP BY state ORDER BY 1")
    assert states == [{"state": state, "n": len(TIMESTEPS) * len(CHANNELS)} for state in ("", "masked")]


def test_layers_of_a_pipeline(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    # Were they the same, they would be stored once, and not be smoothed.
    weights = {"unet": WEIGHTS["in.weight"], "vae": gaussian((96, 64), seed=9)}
    for component, weight in weights.items():
        write_model(pipeline / component, {"in.weight": weight})
    index = {"_class_name": "TestPipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    table = table_of([measured("unet/in.weight", 64, timestep) for timestep in TIMESTEPS])
    result = quantizer.quantize_diffusion_model(pipeline, out, config(), calibration=table)
    assert [layer["tensor"] for layer in result["layers"]] == ["unet/in.weight"]
    assert result["layers"][0]["smoothing_alpha"] is not None
    restored = load_quantized(out)
    for component, weight in weights.items():
        np.testing.assert_allclose(restored[f"{component}/in.weight"].numpy("float32"), weight, atol=5e-3)
    quality = quantizer.validate_quality(pipeline, out, calibration=table)
    assert [layer["tensor"] for layer in quality["layers"]] == ["unet/in.weight"]


def test_progress_tells_of_the_calibration(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []

    def callback(progress: float, message: str, *, stage: str) -> None:
        told.append((progress, stage))

    arguments: dict[str, Any] = {"progress_callback": callback, "progress_interval_s": 0, "calibration": calibration}
    ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out", config(), **arguments)
    progress = [fraction for fraction, _ in told]
    assert progress == sorted(progress) and (progress[0], progress[-1]) == (0, 1)
    assert {stage for _, stage in told} <= {"planning", "calibrating", "quantizing", "requantizing", "done"}


# ---------------------------------------------------------------- weights


def test_without_a_calibration_weights_are_the_same_bytes(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(model, tmp_path / "default", config())
    expected = files(tmp_path / "default", "weights")
    fields: list[dict[str, Any]] = [
        {"num_time_groups": 1},
        {"num_time_groups": 100},
        {"time_group_boundaries": "equal"},
        {"calibration_samples": 1},
        {"enable_time_aware": False},
        {"enable_spatial": False},
        {"enable_time_aware": False, "enable_spatial": False, "num_time_groups": 3},
    ]
    for number, changed in enumerate(fields):
        out = tmp_path / f"out-{number}"
        quantizer.quantize_diffusion_model(model, out, config(**changed))
        assert files(out, "weights") == expected, changed
        assert not (out / "activations.parquet").exists()
    # Nor does a calibration change them, where it has nothing to say on weights.
    for name, changed in [
        ("neither", {"enable_time_aware": False, "enable_spatial": False}),
        ("importance", {"enable_spatial": False}),
        ("smoothing", {"enable_time_aware": False}),
    ]:
        quantizer.quantize_diffusion_model(model, tmp_path / name, config(**changed), calibration=calibration)
        assert (files(tmp_path / name, "weights") == expected) is (name == "neither"), name


def test_weights_are_restored_to_the_scale_of_the_original(model: Path, calibrated: Path) -> None:
    assert len(query(calibrated, "SELECT tensor FROM m.smoothing")) == len(CHANNELS)
    quantized = load_quantized(calibrated)
    for tensor, original in WEIGHTS.items():
        a = original.astype(np.float64).ravel()
        b = quantized[tensor].numpy("float32").astype(np.float64).ravel()
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.99, tensor
        assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(a), rel=0.01), tensor
    # As in the dtype that it had, and by SQL.
    assert quantized["out.weight"].numpy().dtype == np.float16
    sql = """
        SELECT cosine_similarity_agg(o.weights, q.weights) AS cosine
        FROM o.weights o JOIN m.weights q ON o.tensor = q.tensor AND o.chunk = q.chunk
    """
    connection = connect(models={"o": model, "m": calibrated})
    assert connection.sql(sql).to_pyarrow()["cosine"][0].as_py() > 0.999
    # Their codes stand for other weights: those that are multiplied with the factors.
    sql = "SELECT tensor, dequantize(quantized) AS weights FROM m.quantized WHERE tensor = 'in.weight'"
    [codes] = connection.sql(sql).to_pyarrow().to_pylist()
    scaled = np.frombuffer(codes["weights"]["data"], np.float32).reshape(96, 64)
    [smoothing] = query(calibrated, "SELECT smooth FROM m.smoothing WHERE tensor = 'in.weight'")
    restored = scaled / np.array(smoothing["smooth"], np.float32)
    np.testing.assert_allclose(quantized["in.weight"].numpy("float32"), restored, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------- ways to give it


def as_parquet(table: pa.Table, directory: Path) -> Path:
    pq.write_table(table, directory / "calibration.parquet")
    return directory / "calibration.parquet"


def as_arrow(table: pa.Table, directory: Path) -> str:
    path = directory / "calibration.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return str(path)


def as_polars(table: pa.Table, _: Path) -> Any:
    return pytest.importorskip("polars").from_arrow(table)


def as_query(table: pa.Table, _: Path) -> Any:
    return connect(tables={"t": table}).sql("SELECT * FROM t")


def as_stream(table: pa.Table, _: Path) -> Any:
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=7))


@pytest.mark.parametrize("way", [as_parquet, as_arrow, as_polars, as_query, as_stream])
def test_a_path_and_a_table_give_the_same(
    way: Callable[[pa.Table, Path], Any], model: Path, calibration: pa.Table, calibrated: Path, tmp_path: Path
) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    quantizer.quantize_diffusion_model(model, out, config(), calibration=way(calibration, tmp_path))
    assert files(out) == files(calibrated)
    assert "smoothing.parquet" in files(out)
    expected = quantizer.validate_quality(model, calibrated, calibration=calibration)
    found = quantizer.validate_quality(model, out, calibration=way(calibration, tmp_path))
    assert found["layers"] == expected["layers"]


def test_the_methods_that_are_awaited(model: Path, calibration: pa.Table, calibrated: Path, tmp_path: Path) -> None:
    path = as_parquet(calibration, tmp_path)

    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        quantizer = AsyncArrowQuantV2()
        result = await quantizer.quantize_diffusion_model(model, tmp_path / "out", config(), calibration=calibration)
        return result, await quantizer.validate_quality(model, tmp_path / "out", calibration=path)

    result, quality = asyncio.run(main())
    assert (result["time_aware"], len(result["layers"])) == (True, len(CHANNELS))
    assert files(tmp_path / "out") == files(calibrated)
    expected = ArrowQuantV2().validate_quality(model, calibrated, calibration=calibration)
    assert quality["layers"] == expected["layers"]


# ---------------------------------------------------------------- what is refused


def at(rows: Rows, tensor: str, timestep: int) -> dict[str, Any]:
    [row] = [row for row in rows if (row["tensor"], row["timestep"]) == (tensor, timestep)]
    return row


def gap(rows: Rows) -> None:
    rows.remove(at(rows, "conv.weight", 300))


def twice(rows: Rows) -> None:
    rows.append(at(rows, "in.weight", 500))


def other_channels(rows: Rows) -> None:
    for index, row in enumerate(rows):
        if row["tensor"] == "out.weight":
            rows[index] = measured("out.weight", 95, row["timestep"])


def unequal_channels(rows: Rows) -> None:
    rows[rows.index(at(rows, "out.weight", 400))] = measured("out.weight", 95, 400)


def nan(rows: Rows) -> None:
    at(rows, "in.weight", 200)["channel_max"][3] = float("nan")


def below_the_minimum(rows: Rows) -> None:
    at(rows, "in.weight", 200)["channel_max"][3] = -1e9


def of_no_tensor(rows: Rows) -> None:
    rows.extend(measured("out.weights", 96, timestep) for timestep in TIMESTEPS)


def of_no_layer(rows: Rows) -> None:
    rows.extend(measured("conv.bias", 24, timestep) for timestep in TIMESTEPS)


def no_samples(rows: Rows) -> None:
    at(rows, "conv.weight", 0)["samples"] = 0


REFUSALS = [
    (gap, "conv.weight", "timestep 300 is missing"),
    (twice, "in.weight", "timestep 500 is there twice"),
    (other_channels, "out.weight", "95 channels; its weights have 96"),
    (unequal_channels, "out.weight", "timestep 400 has 95 channels"),
    (nan, "in.weight", "timestep 200: channel_max of channel 3 is NaN"),
    (below_the_minimum, "in.weight", "contradict each other"),
    (of_no_tensor, "out.weights", "did you mean 'out.weight'?"),
    (of_no_layer, "conv.bias", "it is no weight of a"),
    (no_samples, "conv.weight", "samples is 0, allowed: 1 or more"),
]


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(("change", "tensor", "message"), REFUSALS)
def test_a_wrong_table_is_refused_before_any_work(
    change: Callable[[Rows], None],
    tensor: str,
    message: str,
    as_file: bool,
    model: Path,
    calibrated: Path,
    tmp_path: Path,
) -> None:
    rows = measured_rows()
    change(rows)
    table: Any = table_of(rows)
    given = as_parquet(table, tmp_path) if as_file else table
    before = sorted(tmp_path.iterdir())
    quantizer, name = ArrowQuantV2(), str(given) if as_file else "calibration"
    with pytest.raises(MetadataError) as caught:
        quantizer.quantize_diffusion_model(model, tmp_path / "out", config(), calibration=given)
    assert caught.value.tensor == tensor
    assert str(caught.value).startswith(f"{name}: ") and message in str(caught.value)
    assert caught.value.path == name
    # Neither the output nor what a job writes before it is complete.
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(MetadataError) as caught:
        quantizer.validate_quality(model, calibrated, calibration=given)
    assert caught.value.tensor == tensor


def test_what_is_no_calibration_table_is_refused(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    no_parquet, other_name = tmp_path / "no.parquet", tmp_path / "calibration.csv"
    no_parquet.write_text("no table")
    other_name.write_text("tensor,timestep\n")
    wrong: list[tuple[Any, str]] = [
        (no_parquet, "no.parquet: not a calibration table"),
        (str(other_name), "allowed: names that end with .parquet or .arrow"),
        (calibration.drop_columns(["samples"]), "it has no column samples"),
        (calibration.slice(0, 0), "it has no rows"),
        (pa.table({"tensor": [1]}), "it has no column timestep"),
    ]
    before = sorted(tmp_path.iterdir())
    for given, message in wrong:
        with pytest.raises(MetadataError) as caught:
            quantizer.quantize_diffusion_model(model, tmp_path / "out", config(), calibration=given)
        assert message in str(caught.value) and caught.value.tensor is None
    missing = tmp_path / "none.parquet"
    with pytest.raises(QuantizationError, match="no such file") as failed:
        quantizer.quantize_diffusion_model(model, tmp_path / "out", config(), calibration=missing)
    assert failed.value.path == str(missing)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "wrong", [3, b"calibration.parquet", True, [], {}, pa.array([1.0]), pa.schema({}), pa.Table, np.ones(3)]
)
def test_what_is_neither_a_path_nor_a_table_is_refused(
    wrong: Any, model: Path, calibrated: Path, tmp_path: Path
) -> None:
    message = "^calibration is of type .*, allowed: a path, as str or os.PathLike, an Arrow table"
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    calls: list[Callable[[], object]] = [
        # When the job is made, before anything is done.
        lambda: QuantizeJob("diffusion", model, out, None, None, calibration=wrong),
        lambda: quantizer.quantize_diffusion_model(model, out, calibration=wrong),
        lambda: quantizer.validate_quality(model, calibrated, calibration=wrong),
        lambda: asyncio.run(AsyncArrowQuantV2().quantize_diffusion_model(model, out, calibration=wrong)),
        lambda: asyncio.run(AsyncArrowQuantV2().validate_quality(model, calibrated, calibration=wrong)),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=message) as caught:
            call()
        assert caught.value.field == "calibration"
    assert list(tmp_path.iterdir()) == []


def test_an_array_is_no_table(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="^calibration is an Arrow array of .*, allowed: a table") as caught:
        ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out", calibration=pa.chunked_array([[1.0]]))
    assert caught.value.field == "calibration"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["base", "diffusion"])
def test_models_of_any_kind_have_a_calibration(
    mode: str, model: Path, calibration: pa.Table, tmp_path: Path
) -> None:
    quantizers: list[Any] = [ArrowQuantV2(mode), AsyncArrowQuantV2(mode)]

    def call(method: Callable[..., Any], out: str) -> Any:
        result = method(model, tmp_path / out, config(), calibration=calibration)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    for number, quantizer in enumerate(quantizers):
        result = call(quantizer.quantize_model, f"out-{number}")
        assert result["time_aware"] and result["layers"]
        # Smoothing is for diffusion models.
        is_smoothed = (tmp_path / f"out-{number}" / "smoothing.parquet").exists()
        assert is_smoothed is (mode == "diffusion")
        if mode == "base":
            with pytest.raises(ConfigurationError) as caught:
                call(quantizer.quantize_diffusion_model, "refused")
            assert caught.value.field == "mode"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-0", "out-1"]


# ---------------------------------------------------------------- validation


def test_the_quality_of_layers(model: Path, calibration: pa.Table, calibrated: Path) -> None:
    quality = ArrowQuantV2().validate_quality(model, calibrated, calibration=calibration)
    assert quality["passed"] is True
    assert [layer["tensor"] for layer in quality["layers"]] == list(CHANNELS)
    groups = query(calibrated, "SELECT tensor, count(*) AS n FROM m.time_groups GROUP BY tensor")
    counts = {row["tensor"]: row["n"] for row in groups}
    for layer in quality["layers"]:
        assert layer.keys() == QUALITY.keys()
        assert all(isinstance(layer[key], kind) for key, kind in QUALITY.items()), layer
        assert (layer["timesteps"], layer["time_groups"]) == (len(TIMESTEPS), counts[layer["tensor"]])
        assert 0 <= layer["loss_db"] <= layer["worst_loss_db"] < 6
        assert 0 <= layer["smoothing_error"] < 1e-5
        assert 20 < layer["worst_activation_sqnr_db"] <= layer["activation_sqnr_db"]
        assert 20 < layer["worst_output_sqnr_db"] <= layer["output_sqnr_db"] <= layer["activation_sqnr_db"]
    without = ArrowQuantV2().validate_quality(model, calibrated)
    assert without.pop("layers") == [] and quality.pop("layers")
    assert without.pop("per_layer_accuracy") == pytest.approx(quality.pop("per_layer_accuracy"))
    assert without == pytest.approx(quality)


def test_layers_that_are_not_smoothed_have_no_smoothing_error(
    model: Path, calibration: pa.Table, tmp_path: Path
) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    quantizer.quantize_diffusion_model(model, out, config(enable_spatial=False), calibration=calibration)
    quality = quantizer.validate_quality(model, out, calibration=calibration)
    assert [layer["smoothing_error"] for layer in quality["layers"]] == [None] * len(CHANNELS)


def test_as_many_samples_are_used_as_by_the_job(model: Path, tmp_path: Path) -> None:
    first = [row | {"batch": 0} for row in measured_rows()]
    wider = [
        measured(tensor, channels, timestep, scale=100.0) | {"batch": 1}
        for tensor, channels in CHANNELS.items()
        for timestep in TIMESTEPS
    ]
    quantizer, both = ArrowQuantV2(), table_of(first + wider)
    for samples, is_used in [(SAMPLES, False), (SAMPLES + 1, True)]:
        out = tmp_path / f"out-{samples}"
        quantizer.quantize_diffusion_model(model, out, config(calibration_samples=samples), calibration=both)
        quality = quantizer.validate_quality(model, out, calibration=both)
        alone = quantizer.validate_quality(model, out, calibration=table_of(first))
        assert (quality["layers"] != alone["layers"]) is is_used
        assert all(layer["worst_loss_db"] < 6 for layer in quality["layers"])


def test_a_manifest_without_samples(model: Path, calibration: pa.Table, calibrated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(model, out, config(), calibration=calibration)
    manifest = json.loads((out / "arrow_quant.json").read_text())
    del manifest["settings"]["calibration_samples"]
    (out / "arrow_quant.json").write_text(json.dumps(manifest))
    quality = quantizer.validate_quality(model, out, calibration=calibration)
    expected = quantizer.validate_quality(model, calibrated, calibration=calibration)
    assert quality["layers"] == expected["layers"]


def test_a_timestep_that_no_group_has(model: Path, calibrated: Path) -> None:
    rows = measured_rows()
    rows += [measured(tensor, channels, 2000, scale=0.01) for tensor, channels in CHANNELS.items()]
    with pytest.raises(ValidationError, match=r"^\w+\.weight: timestep 2000 is in 0 time groups") as caught:
        ArrowQuantV2().validate_quality(model, calibrated, calibration=table_of(rows))
    assert caught.value.tensor in CHANNELS


def test_a_model_that_was_not_calibrated(model: Path, calibration: pa.Table, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(model, tmp_path / "out", config())
    with pytest.raises(ValidationError, match="was quantized without a calibration"):
        quantizer.validate_quality(model, tmp_path / "out", calibration=calibration)
