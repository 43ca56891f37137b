"""Every exception, caused for real, with what it is about."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import gaussian, write_model

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowQuantError,
    ArrowQuantV2,
    ConfigurationError,
    DiffusionQuantConfig,
    MetadataError,
    ModelNotFoundError,
    OutputExistsError,
    QuantizationError,
    ShapeMismatchError,
    ValidationError,
)

ALL = [
    ConfigurationError,
    ModelNotFoundError,
    OutputExistsError,
    MetadataError,
    ShapeMismatchError,
    ValidationError,
    QuantizationError,
]


def about(error: ArrowQuantError) -> dict[str, str]:
    """The attributes that say what an error is about."""
    found = {"tensor": error.tensor, "field": error.field, "path": error.path}
    return {name: value for name, value in found.items() if value is not None}


def test_there_are_seven_under_one_base() -> None:
    assert all(issubclass(kind, ArrowQuantError) for kind in ALL)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ModelNotFoundError, FileNotFoundError)
    assert issubclass(OutputExistsError, ConfigurationError) and issubclass(OutputExistsError, FileExistsError)
    names = [name for name in arrow_quant_v2.__all__ if name.endswith("Error")]
    assert sorted(names) == sorted(kind.__name__ for kind in [ArrowQuantError, *ALL])


def test_a_configuration_error_names_the_field() -> None:
    with pytest.raises(ValueError, match="^bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8$") as caught:
        DiffusionQuantConfig(bit_width=7)
    assert type(caught.value) is ConfigurationError
    assert about(caught.value) == {"field": "bit_width"}


def test_a_configuration_error_names_the_file_and_the_field(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("group_size: 100\n")
    with pytest.raises(ConfigurationError, match="c.yaml: group_size is 100, allowed: ") as caught:
        DiffusionQuantConfig.from_yaml(path)
    assert about(caught.value) == {"field": "group_size", "path": str(path)}


def test_a_model_that_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ArrowQuantV2().quantize_diffusion_model(tmp_path / "none", tmp_path / "out")
    assert type(caught.value) is ModelNotFoundError
    assert about(caught.value) == {"path": str(tmp_path / "none")}
    assert str(tmp_path / "none") in str(caught.value)


def test_a_file_that_contradicts_itself(tiny_model: Path, tmp_path: Path) -> None:
    path = tiny_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MetadataError) as caught:
        ArrowQuantV2().quantize_diffusion_model(tiny_model, tmp_path / "out")
    found = about(caught.value)
    assert found["path"] == str(path)
    assert found["tensor"] in ("a.bias", "a.weight", "b.weight", "steps")
    assert found["tensor"] in str(caught.value)


def test_a_manifest_that_is_not_understood(tmp_path: Path, digits_dit: Path) -> None:
    path = tmp_path / "arrow_quant.json"
    path.write_text("[]")
    with pytest.raises(MetadataError) as caught:
        ArrowQuantV2().validate_quality(digits_dit, tmp_path)
    assert about(caught.value) == {"path": str(path)}


def test_models_whose_shapes_differ(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"w": gaussian((64, 64))})
    other = write_model(tmp_path / "other", {"w": gaussian((32, 128))})
    ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out")
    with pytest.raises(ShapeMismatchError, match=r"\[32, 128\].*\[64, 64\]") as caught:
        ArrowQuantV2().validate_quality(other, tmp_path / "out")
    assert about(caught.value) == {"tensor": "w"}


def test_a_tensor_below_the_floor(digits_dit: Path, tmp_path: Path) -> None:
    config = DiffusionQuantConfig(min_accuracy=0.999, fail_fast=True)
    with pytest.raises(ValidationError, match="below min_accuracy 0.999") as caught:
        ArrowQuantV2().quantize_diffusion_model(digits_dit, tmp_path / "out", config)
    (name,) = about(caught.value).values()
    assert caught.value.tensor == name and str(caught.value).startswith(f"{name} quantized to 4 bits ")
    assert str(caught.value).endswith(": give it more bits, or leave out fail_fast to have that done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number(weight: float, tmp_path: Path) -> None:
    weights = gaussian((64, 64))
    weights[3, 7] = weight
    model = write_model(tmp_path / "model", {"v": gaussian((64, 64), seed=1), "w": weights})
    with pytest.raises(QuantizationError, match="199") as caught:
        ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out")
    assert about(caught.value) == {"tensor": "w"}
    assert str(caught.value).endswith("; repair the model, or keep the tensor as it is: name it in `sensitive_layer_names=`")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tensor_of_a_pipeline_is_named_with_its_component(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    weights = gaussian((64, 64))
    weights[0, 0] = math.nan
    write_model(pipeline / "unet", {"w": gaussian((64, 64), seed=1)})
    write_model(pipeline / "vae", {"w": weights})
    index = {"_class_name": "TestPipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(QuantizationError) as caught:
        ArrowQuantV2().quantize_diffusion_model(pipeline, tmp_path / "out")
    assert about(caught.value) == {"tensor": "vae/w"}


def test_a_file_that_cannot_be_written(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "none" / "out"
    with pytest.raises(QuantizationError) as caught:
        ArrowQuantV2().quantize_diffusion_model(tiny_model, out)
    assert set(about(caught.value)) == {"path"}
    assert str(caught.value.path).startswith(str(tmp_path / "none"))


def test_an_output_that_an_interrupted_run_left(tiny_model: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "journal.jsonl").write_text("")
    with pytest.raises(OutputExistsError, match="continue it with `resume=True`, remove it, or choose") as caught:
        ArrowQuantV2().quantize_diffusion_model(tiny_model, tmp_path / "out")
    assert about(caught.value) == {"path": str(partial)}


def test_an_output_that_exists(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(FileExistsError, match="out` exists already: replace it by `overwrite=True`, remove it, or choose another output$") as caught:
        ArrowQuantV2().quantize_diffusion_model(tiny_model, tmp_path / "out")
    assert type(caught.value) is OutputExistsError
    assert about(caught.value) == {"path": str(tmp_path / "out")}


def test_an_output_is_replaced_when_told_to_and_only_if_it_is_a_model(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model(tiny_model, out, DiffusionQuantConfig(bit_width=8))
    with pytest.raises(FileExistsError):
        quantizer.quantize_diffusion_model(tiny_model, out)
    result = quantizer.quantize_diffusion_model(tiny_model, out, DiffusionQuantConfig(bit_width=4), overwrite=True)
    assert result["bit_width"] == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FileExistsError):
        quantizer.quantize_diffusion_model(tiny_model, tmp_path / "mine", overwrite=True)


def test_a_model_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"w": gaussian((1024, 1024))})
    file = next(model.glob("*.safetensors"))
    connection = arrow_quant_v2.connect(models={"m": model})
    with file.open("r+b") as opened:
        opened.truncate(100_000)
    with pytest.raises(QuantizationError, match="it had .* bytes when it was opened and has 100000") as caught:
        connection.sql("SELECT tensor_stats(weights)['n'] FROM m.weights").to_pyarrow()
    assert about(caught.value) == {"path": str(file)}


def test_a_selection_of_nothing(tiny_model: Path, tmp_path: Path) -> None:
    config = DiffusionQuantConfig(tensors="nothing")
    with pytest.raises(ConfigurationError, match="^tensors is 'nothing', which selects no tensor ") as caught:
        ArrowQuantV2().quantize_diffusion_model(tiny_model, tmp_path / "out", config)
    assert about(caught.value) == {"field": "tensors"}
    # The advice is of Python, not of the command.
    assert str(caught.value).endswith("see `SELECT tensor FROM tensors('MODEL')`")


def test_a_model_that_does_not_fit_in_memory(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"w": gaussian((1024, 1024))})
    config = DiffusionQuantConfig(max_memory_limit_mb=192, enable_streaming=False)
    with pytest.raises(ConfigurationError, match="^max_memory_limit_mb is 192, but the model is, because ") as caught:
        ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out", config)
    assert about(caught.value) == {"field": "max_memory_limit_mb"}
    assert str(caught.value).endswith(", or `enable_streaming=True`")


def test_a_model_that_does_not_tell_what_it_makes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"alpha.weight": gaussian((64, 64))})
    config = DiffusionQuantConfig(skip_sensitive_layers=True)
    with pytest.raises(MetadataError, match="give `modality=` as text, code, image or audio") as caught:
        ArrowQuantV2().quantize_diffusion_model(model, tmp_path / "out", config)
    assert about(caught.value) == {"path": str(model)}


def test_a_query_that_fails() -> None:
    with pytest.raises(QuantizationError, match="nothing") as caught:
        arrow_quant_v2.connect().sql("SELECT nothing")
    assert about(caught.value) == {}


def test_a_weight_in_memory_that_is_no_number() -> None:
    weights = np.ones((4, 64), np.float32)
    weights[1, 1] = math.nan
    with pytest.raises(QuantizationError, match="65") as caught:
        ArrowQuantV2().quantize({"w": weights})
    assert about(caught.value) == {"tensor": "w"}


@pytest.mark.parametrize("kind", [ArrowQuantError, *ALL])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_can_be_pickled(kind: type[ArrowQuantError], protocol: int) -> None:
    error = kind("w is wrong", tensor="vae/w", field="bit_width", path="dream-7b")
    for again in [pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)]:
        assert type(again) is kind
        assert str(again) == "w is wrong"
        assert about(again) == {"tensor": "vae/w", "field": "bit_width", "path": "dream-7b"}


def test_an_error_of_a_job_can_be_pickled(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        ArrowQuantV2().quantize_diffusion_model(tmp_path / "none", tmp_path / "out")
    again: Any = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), about(again)) == (ModelNotFoundError, str(caught.value), about(caught.value))
