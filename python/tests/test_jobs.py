"""Quantizing models and comparing them with their originals."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import interrupt_job
from models import gaussian, write_model
from safetensors.numpy import load_file

from arrow_quant_v2 import (
    ArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    MetadataError,
    ModelNotFoundError,
    OutputExistsError,
    ShapeMismatchError,
    TensorTable,
    connect,
    results,
)

RESULT = {
    "quantized_path": str,
    "compression_ratio": float,
    "cosine_similarity": float,
    "sqnr_db": float,
    "model_size_mb": float,
    "bits_per_weight": float,
    "modality": str,
    "bit_width": int,
    "quantization_time_s": float,
    "fallbacks": list,
    "kept": list,
    "tensors": TensorTable,
    "time_aware": bool,
    "reason": str,
    "layers": list,
    "notes": list,
    "resumed_parts": int,
}


def manifest(model: Path) -> Any:
    return json.loads((model / "arrow_quant.json").read_text())


def test_the_sample_of_the_readme(digits_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dream-7b").symlink_to(digits_dit, target_is_directory=True)
    calls = []

    quantizer = ArrowQuantV2(mode="diffusion")
    config = DiffusionQuantConfig.from_profile("edge")

    def progress_callback(progress: float, message: str) -> None:
        calls.append(f"Progress: {progress:.1%} - {message}")

    result = quantizer.quantize_diffusion_model(
        model_path="dream-7b/", output_path="dream-7b-int2/", config=config, progress_callback=progress_callback
    )
    assert calls[0].startswith("Progress: 0.0% - planning dream-7b/")
    assert calls[-1].startswith("Progress: 100.0% - wrote dream-7b-int2/: ")
    assert result["quantized_path"] == "dream-7b-int2/"
    assert result["bit_width"] == 2
    assert result["compression_ratio"] > 5 and result["cosine_similarity"] > 0.9
    assert (tmp_path / "dream-7b-int2" / "config.json").read_bytes() == (digits_dit / "config.json").read_bytes()


def test_the_result_of_a_job(digits_dit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = ArrowQuantV2().quantize_diffusion_model(digits_dit, out)
    assert {key: type(value) for key, value in result.items()} == RESULT
    assert result["quantized_path"] == str(out)
    assert result["bit_width"] == 4
    assert result["modality"] == "image"
    assert 3 < result["compression_ratio"] < 4
    assert 4.25 < result["bits_per_weight"] < 5
    assert 0.99 < result["cosine_similarity"] < 1
    assert 18 < result["sqnr_db"] < 24
    assert result["quantization_time_s"] > 0
    assert result["resumed_parts"] == 0
    assert result["fallbacks"] == []
    assert (result["time_aware"], result["reason"], result["layers"]) == (False, "no calibration", [])
    stored = sum(path.stat().st_size for path in (out / "weights").iterdir())
    assert result["model_size_mb"] == stored / 1e6
    assert len(result["tensors"]) == 52
    quantized = [tensor for tensor in result["tensors"] if tensor["bits"] is not None]
    assert {tensor["bits"] for tensor in quantized} == {4}
    assert {tensor["tensor"] for tensor in quantized} >= {"pos_embed", "blocks.0.fc1.weight"}
    assert len(result["kept"]) == 52 - len(quantized) >= 25
    assert {"tensor": "blocks.0.fc1.bias", "because": "1-D"} in result["kept"]
    assert list(result["tensors"]) == manifest(out)["tensors"]


def test_the_quality_of_a_quantized_model(digits_dit: Path, quantized_digits: Path) -> None:
    quantizer = ArrowQuantV2()
    quality = quantizer.validate_quality(original_path=digits_dit, quantized_path=quantized_digits)
    recorded = {tensor["tensor"]: tensor["cosine_similarity"] for tensor in manifest(quantized_digits)["tensors"]}
    expected = {name: cosine for name, cosine in recorded.items() if cosine is not None}
    assert quality["per_layer_accuracy"] == pytest.approx(expected, abs=1e-5)
    worst = min(quality["per_layer_accuracy"].values())
    assert quality["passed"] is True
    assert worst < quality["cosine_similarity"] < 1
    assert 18 < quality["sqnr_db"] < 24
    assert 3 < quality["compression_ratio"] < 4
    stored = sum(path.stat().st_size for path in (quantized_digits / "weights").iterdir())
    assert quality["model_size_mb"] == stored / 1e6
    assert set(quality) == {
        "cosine_similarity",
        "sqnr_db",
        "compression_ratio",
        "model_size_mb",
        "passed",
        "per_layer_accuracy",
        "layers",
    }
    assert quality["layers"] == []
    for floor, passed in [
        (worst, True),
        (math.nextafter(worst, 1), False),
        (1, False),
        (0, True),
        (np.float32(0.5), True),
    ]:
        result = quantizer.validate_quality(digits_dit, quantized_digits, min_accuracy=floor)
        assert result["passed"] is passed, floor


def test_the_floor_is_that_of_the_quantized_model(digits_dit: Path, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.0)
    quantizer.quantize_diffusion_model(digits_dit, tmp_path / "out", config)
    assert quantizer.validate_quality(digits_dit, tmp_path / "out")["passed"]
    assert not quantizer.validate_quality(digits_dit, tmp_path / "out", min_accuracy=0.99)["passed"]


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan, "0.9", True])
def test_a_floor_is_between_zero_and_one(floor: Any, digits_dit: Path, quantized_digits: Path) -> None:
    with pytest.raises(ConfigurationError, match="^min_accuracy is .*, allowed: 0.0 to 1.0") as caught:
        ArrowQuantV2().validate_quality(digits_dit, quantized_digits, min_accuracy=floor)
    assert caught.value.field == "min_accuracy"


def test_a_tensor_that_was_lost_does_not_pass() -> None:
    tensor = {"component": "", "tensor": "w", "bits": 4, "cosine_similarity": None, "max_abs_error": 0.1}
    zeros = {**tensor, "component": "unet", "max_abs_error": 0.0}
    kept = {**tensor, "tensor": "b", "bits": None, "max_abs_error": None}
    report: dict[str, Any] = {
        "tensors": [tensor, zeros, kept],
        "cosine_similarity": None,
        "sqnr_db": 0.0,
        "compression_ratio": 4.0,
        "model_size_mb": 1.0,
        "min_accuracy": 0.0,
        "layers": [],
    }
    quality = results.quality_result(report, "out", None)
    assert (quality["passed"], quality["cosine_similarity"]) == (False, 0.0)
    assert quality["per_layer_accuracy"] == {"w": 0.0, "unet/w": 1.0}
    quality = results.quality_result({**report, "tensors": [zeros, kept], "sqnr_db": None}, "out", 1.0)
    assert (quality["passed"], quality["cosine_similarity"], quality["sqnr_db"]) == (True, 1.0, math.inf)


def test_fallbacks_are_told(digits_dit: Path, tmp_path: Path) -> None:
    config = DiffusionQuantConfig.from_profile("edge")
    config.min_accuracy = 0.95
    result = ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", config)
    assert result["bit_width"] == 2
    assert result["fallbacks"]
    tensors = {tensor["tensor"]: tensor for tensor in result["tensors"]}
    for fallback in result["fallbacks"]:
        tensor = tensors[fallback["tensor"]]
        assert fallback["bits"] == tensor["bits"] != 2
        assert fallback["attempts"] == tensor["fallbacks"]
        first = fallback["attempts"][0]
        assert first["bits"] == 2 and first["group_size"] == 256 and first["cosine_similarity"] < 0.95


def test_a_model_without_anything_to_quantize(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"bias": gaussian((64,))})
    quantizer = ArrowQuantV2()
    result = quantizer.quantize_model(model, tmp_path / "out")
    assert (result["cosine_similarity"], result["sqnr_db"]) == (1.0, math.inf)
    assert [kept["tensor"] for kept in result["kept"]] == ["bias"]
    quality = quantizer.validate_quality(model, tmp_path / "out")
    assert quality["passed"] and quality["per_layer_accuracy"] == {}
    assert (quality["cosine_similarity"], quality["sqnr_db"]) == (1.0, math.inf)


def test_the_names_of_a_pipeline_have_its_components(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    for seed, component in enumerate(["unet", "vae"]):
        write_model(pipeline / component, {"w": gaussian((32, 256), seed=seed), "b": gaussian((32,), seed=seed)})
    index = {"_class_name": "TestPipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    quantizer = ArrowQuantV2()
    result = quantizer.quantize_diffusion_model(
        pipeline, tmp_path / "out", DiffusionQuantConfig(sensitive_layer_names=["vae"])
    )
    assert sorted(kept["tensor"] for kept in result["kept"]) == ["unet/b", "vae/b", "vae/w"]
    quality = quantizer.validate_quality(pipeline, tmp_path / "out")
    assert list(quality["per_layer_accuracy"]) == ["unet/w"]


def test_every_kind_of_path_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2()

    class Place:
        def __fspath__(self) -> str:
            return str(tmp_path / "c")

    ways: list[tuple[Any, Any]] = [
        (tiny_model, tmp_path / "a"),
        (str(tiny_model), f"{tmp_path / 'b'}/"),
        (tiny_model / "model.safetensors", Place()),
    ]
    for model, out in ways:
        result = quantizer.quantize_model(model, out)
        assert result["quantized_path"] == os.fspath(out)
        assert quantizer.validate_quality(model, out)["passed"]


@pytest.mark.parametrize("argument", ["model_path", "output_path", "plan"])
def test_what_is_no_path_is_refused(argument: str, tiny_model: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model_path": tiny_model, "output_path": tmp_path / "out", argument: 3}
    with pytest.raises(ConfigurationError, match=f"^{argument} is 3, allowed: a path") as caught:
        ArrowQuantV2().quantize_model(**arguments)
    assert caught.value.field == argument


@pytest.mark.parametrize("config", ["edge", 4, ["bit_width"], DiffusionQuantConfig])
def test_what_is_no_configuration_is_refused(config: Any, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="^config is .*, allowed: a DiffusionQuantConfig") as caught:
        ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out", config)
    assert caught.value.field == "config"


@pytest.mark.parametrize("mode", ["Diffusion", "", None, 1, ["base"]])
def test_there_are_two_modes(mode: Any) -> None:
    assert [ArrowQuantV2().mode, ArrowQuantV2(mode="base").mode] == ["diffusion", "base"]
    assert repr(ArrowQuantV2("base")) == "ArrowQuantV2(mode='base')"
    with pytest.raises(AttributeError):
        ArrowQuantV2().mode = "base"  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="^mode is .*, allowed: diffusion or base$") as caught:
        ArrowQuantV2(mode)
    assert caught.value.field == "mode"


def test_the_mode_of_other_models(tiny_model: Path, tmp_path: Path) -> None:
    quantizer = ArrowQuantV2(mode="base")
    with pytest.raises(ConfigurationError, match="quantize_model$") as caught:
        quantizer.quantize_diffusion_model(tiny_model, tmp_path / "out")
    assert caught.value.field == "mode"
    assert not (tmp_path / "out").exists()

    config = DiffusionQuantConfig()
    quantizer.quantize_model(tiny_model, tmp_path / "out", config)
    assert config == DiffusionQuantConfig()
    settings = manifest(tmp_path / "out")["settings"]
    assert (settings["enable_time_aware"], settings["enable_spatial"]) == (False, False)
    ArrowQuantV2().quantize_model(tiny_model, tmp_path / "other", config)
    settings = manifest(tmp_path / "other")["settings"]
    assert (settings["enable_time_aware"], settings["enable_spatial"]) == (True, True)


def test_the_configuration_decides(tiny_model: Path, tmp_path: Path) -> None:
    config = DiffusionQuantConfig(layer_bit_widths={"a.weight": 8}, sensitive_layer_patterns=["^b"], group_size=64)
    result = ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out", config)
    found = {tensor["tensor"]: (tensor["bits"], tensor["group_size"]) for tensor in result["tensors"]}
    assert found == {"a.bias": (None, None), "a.weight": (8, 64), "b.weight": (None, None), "steps": (None, None)}


def test_a_job_has_the_configuration_that_it_began_with(digits_dit: Path, tmp_path: Path) -> None:
    config = DiffusionQuantConfig(bit_width=8)

    def change(progress: float, message: str) -> None:
        config.bit_width = 2

    result = ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", config, change)
    assert result["bit_width"] == 8
    assert manifest(tmp_path / "out")["settings"]["bit_width"] == 8


def test_a_plan_decides(tiny_model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.csv"
    plan.write_text("component,tensor,bits,group_size\n,a.weight,2,32\n,a.bias,,\n,b.weight,8,64\n,steps,,\n")
    config = DiffusionQuantConfig(min_accuracy=0.0)
    result = ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out", config, plan=plan)
    found = {tensor["tensor"]: (tensor["bits"], tensor["group_size"]) for tensor in result["tensors"]}
    assert found == {"a.bias": (None, None), "a.weight": (2, 32), "b.weight": (8, 64), "steps": (None, None)}


def test_what_exists_is_not_written_over(tiny_model: Path, tmp_path: Path) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    quantizer.quantize_model(tiny_model, out)
    before = (out / "arrow_quant.json").read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        quantizer.quantize_model(tiny_model, out)
    assert caught.value.path == str(out)
    assert (out / "arrow_quant.json").read_bytes() == before


def test_a_run_that_was_interrupted_is_resumed_only_if_that_is_asked_for(
    big_model: Path, slow_config: DiffusionQuantConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantizer, out = ArrowQuantV2(), tmp_path / "out"
    interrupt_job(big_model, out, slow_config)
    assert f"the finished parts are in {out}.partial: continue with resume=True" in caplog.text
    with pytest.raises(ConfigurationError, match="resume") as caught:
        quantizer.quantize_model(big_model, out)
    assert caught.value.path == f"{out}.partial"

    caplog.clear()
    result = quantizer.quantize_model(big_model, out, resume=True)
    assert result["resumed_parts"] == 0
    assert "begun anew" in caplog.text
    assert not Path(f"{out}.partial").exists()
    shutil.rmtree(out)


def test_an_error_ends_a_job_without_a_trace(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"w": gaussian((32, 256))})
    other = write_model(tmp_path / "other", {"w": gaussian((256, 32))})
    quantizer = ArrowQuantV2()
    quantizer.quantize_model(model, tmp_path / "out")
    with pytest.raises(ShapeMismatchError):
        quantizer.validate_quality(other, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        quantizer.quantize_model(tmp_path / "none", tmp_path / "more")
    assert sorted(os.listdir(tmp_path)) == ["model", "other", "out"]


def test_a_quantized_model_holds_what_was_not_quantized(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out")
    original = load_file(tiny_model / "model.safetensors")
    query = "SELECT weights['data'] AS data FROM tiny.weights WHERE tensor = 'steps'"
    (row,) = connect(models={"tiny": tmp_path / "out"}).sql(query).to_pyarrow().to_pylist()
    assert row["data"] == original["steps"].tobytes()


def test_a_table_of_tensors_is_a_sequence(tiny_model: Path, tmp_path: Path) -> None:
    tensors = ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out")["tensors"]
    rows = manifest(tmp_path / "out")["tensors"]
    assert len(tensors) == 4 and list(tensors) == rows
    assert tensors[0] == rows[0] and tensors[-1] == rows[-1]
    assert isinstance(tensors[1:3], TensorTable) and list(tensors[1:3]) == rows[1:3]
    assert rows[2] in tensors and {} not in tensors
    assert list(reversed(tensors)) == rows[::-1]
    assert tensors == TensorTable(rows) and tensors != TensorTable(rows[1:]) and tensors != rows
    assert eval(repr(tensors), {"TensorTable": TensorTable, "nan": math.nan, "inf": math.inf}) == tensors
    assert pickle.loads(pickle.dumps(tensors)) == tensors
    with pytest.raises(IndexError):
        tensors[4]
    with pytest.raises(TypeError):
        hash(tensors)


def test_a_table_of_tensors_is_an_arrow_table(digits_dit: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.95)
    tensors = ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", config)["tensors"]
    table = pyarrow.table(tensors)
    assert table.schema == pyarrow.schema(tensors) == tensors.to_pyarrow().schema
    assert table.num_rows == 52
    for column in ["tensor", "shape", "elements", "bits", "group_size", "cosine_similarity", "sqnr_db", "bytes"]:
        assert table[column].to_pylist() == [tensor[column] for tensor in tensors], column
    connection = connect(tables={"tensors": tensors})
    (row,) = connection.sql("SELECT sum(elements) AS n FROM tensors").to_pyarrow().to_pylist()
    assert row["n"] == sum(tensor["elements"] for tensor in tensors)


def test_an_empty_table_has_columns() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(TensorTable([]))
    assert table.num_rows == 0 and {"tensor", "bits", "cosine_similarity"} <= set(table.column_names)


def test_a_table_of_tensors_in_pandas_and_polars(tiny_model: Path, tmp_path: Path) -> None:
    tensors = ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out")["tensors"]
    names = [tensor["tensor"] for tensor in tensors]
    polars = pytest.importorskip("polars")
    assert tensors.to_polars()["tensor"].to_list() == names
    assert polars.DataFrame(tensors).equals(tensors.to_polars())
    pytest.importorskip("pandas")
    assert tensors.to_pandas()["tensor"].tolist() == names


def test_what_was_quantized_without_loss_has_an_infinite_sqnr(tmp_path: Path) -> None:
    tensors = {
        "constant": np.ones((32, 64), np.float32),
        "kept": gaussian((64,)),
        "weight": gaussian((32, 64)),
        "zero": np.zeros((32, 64), np.float32),
    }
    model = write_model(tmp_path / "model", tensors)
    table = ArrowQuantV2().quantize_model(model, tmp_path / "out")["tensors"]
    found = {tensor["tensor"]: tensor["sqnr_db"] for tensor in table}
    assert found == {"constant": math.inf, "kept": None, "weight": found["weight"], "zero": math.inf}
    # As the documentation has it.
    assert min((t for t in table if t["bits"]), key=lambda t: t["sqnr_db"])["tensor"] == "weight"
    [row] = (
        connect(tables={"t": table}).sql("SELECT count(*) AS n FROM t WHERE sqnr_db = 'inf'").to_pyarrow().to_pylist()
    )
    assert row["n"] == 2
    assert {row["tensor"]: row["sqnr_db"] for row in table.to_pyarrow().to_pylist()} == found
    assert {row["tensor"]: row["sqnr_db"] for row in table[:2].to_pyarrow().to_pylist()} == {
        name: found[name] for name in ("constant", "kept")
    }
    # Rows that come from the manifest, where there is no infinity, are the same table.
    assert TensorTable(manifest(tmp_path / "out")["tensors"]).to_pyarrow() == table.to_pyarrow()


def test_a_manifest_without_a_floor(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantizer = ArrowQuantV2()
    quantizer.quantize_model(tiny_model, out)
    changed = manifest(out)
    del changed["settings"]["min_accuracy"]
    (out / "arrow_quant.json").write_text(json.dumps(changed))
    with pytest.raises(MetadataError, match="min_accuracy") as caught:
        quantizer.validate_quality(tiny_model, out)
    assert str(caught.value.path).startswith(str(out))
    assert quantizer.validate_quality(tiny_model, out, min_accuracy=0.5)["passed"]


@pytest.mark.parametrize("floor", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2), np.int64(0)])
def test_a_floor_is_any_real_number(floor: Any, digits_dit: Path, quantized_digits: Path) -> None:
    quality = ArrowQuantV2().validate_quality(digits_dit, quantized_digits, min_accuracy=floor)
    assert quality["passed"] is True


@pytest.mark.parametrize("value", [1, 0, None, "yes", [True]])
@pytest.mark.parametrize("argument", ["resume", "progress"])
def test_flags_are_true_or_false(argument: str, value: Any, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument} is .*, allowed: True or False") as caught:
        ArrowQuantV2().quantize_model(tiny_model, tmp_path / "out", **{argument: value})
    assert caught.value.field == argument
    assert not (tmp_path / "out").exists()


def test_an_export_has_the_bytes_of_a_job_in_that_format(tmp_path: Path) -> None:
    weights = {"a.weight": gaussian((64, 128)), "a.bias": gaussian((64,), seed=1)}
    model = write_model(tmp_path / "model", weights)
    (model / "config.json").write_text("{}")
    base = ArrowQuantV2(mode="base")
    base.quantize_model(model, tmp_path / "int4", group_size=64)
    base.quantize_model(model, tmp_path / "direct", group_size=64, format="mlx")
    result = base.export(tmp_path / "int4", tmp_path / "exported", format="mlx")
    direct, exported = tmp_path / "direct", tmp_path / "exported"
    assert (exported / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
    assert result["quantized_path"] == str(exported) and result["bit_width"] == 4
    assert [tensor["tensor"] for tensor in result["tensors"] if tensor["bits"] == 4] == ["a.weight"]

    with pytest.raises(OutputExistsError, match="exported"):
        base.export(tmp_path / "int4", exported, format="mlx")
    base.export(tmp_path / "int4", exported, format="mlx", overwrite=True)
    with pytest.raises(ConfigurationError, match="format is 'gulf'") as refused:
        base.export(tmp_path / "int4", tmp_path / "none", format="gulf")
    assert refused.value.field == "format"
    with pytest.raises(ModelNotFoundError):
        base.export(model, tmp_path / "none", format="mlx")
    assert not (tmp_path / "none").exists()
