"""A program as a user with a type checker writes it. It is checked, not run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import numpy as np
from typing_extensions import assert_type

import arrow_quant_v2
from arrow_quant_v2 import (
    ArrowQuantError,
    ArrowQuantV2,
    AsyncArrowQuantV2,
    ConfigurationError,
    Connection,
    DiffusionQuantConfig,
    QuantizeResult,
    Result,
    functions,
)


def progress_callback(progress: float, message: str) -> None:
    print(f"Progress: {progress:.1%} - {message}")


def detailed(progress: float, message: str, *, stage: str, tensor: str, done: int, total: int) -> None:
    print(f"{progress:.1%} {message} {stage} {tensor} {done}/{total}")


def job() -> None:
    quantizer = ArrowQuantV2(mode="diffusion")
    config = DiffusionQuantConfig.from_profile("edge")
    result = quantizer.quantize_diffusion_model(
        model_path="dream-7b/", output_path="dream-7b-int2/", config=config, progress_callback=progress_callback
    )
    print(f"{result['compression_ratio']:.1f}x {result['cosine_similarity']:.3f} {result['model_size_mb']:.1f} MB")
    quantizer.quantize_model("dream-7b/", "dream-7b-int4/", progress_callback=detailed, progress_interval_s=1.0)
    quantizer.quantize_query("SELECT * FROM weights('dream-7b/')", "dream-7b-copy/", resume=True)
    quality = quantizer.validate_quality("dream-7b/", "dream-7b-int2/")
    print(quality["passed"], quality["per_layer_accuracy"])


def keywords() -> None:
    result = arrow_quant_v2.quantize_model("dream-7b/", "dream-7b-int4/", bit_width=4, layer_bit_widths={"lm_head": 8})
    assert_type(result, QuantizeResult)
    assert_type(result["kept"][0]["because"], str)
    arrow_quant_v2.quantize_model("dream-7b/", "dream-7b-int8/", {"bit_width": 8})
    arrow_quant_v2.quantize_model("dream-7b/", "dream-7b-int8/", bitwidth=8)  # type: ignore[call-arg]
    arrow_quant_v2.quantize_model("dream-7b/", "dream-7b-int8/", bit_width="8")  # type: ignore[arg-type]
    plan = ArrowQuantV2().plan("dream-7b/", target_bpw=3.5, output=Path("plan.csv"))
    assert_type(plan["tensors"][0]["bits"], int | None)
    assert_type(arrow_quant_v2.inspect("dream-7b/")["weights"], int)
    print(arrow_quant_v2.report("dream-7b-int4/", html="report.html")["settings"], plan["nothing"])  # type: ignore[typeddict-item]


def calibrated() -> None:
    quantizer = ArrowQuantV2()
    quantizer.quantize_diffusion_model("dream-7b/", "dream-7b-a8/", calibration="calibration.parquet")
    table = arrow_quant_v2.connect().sql("SELECT * FROM calibration")
    quantizer.quantize_diffusion_model("dream-7b/", "dream-7b-a8/", calibration=table.collect())
    quantizer.validate_quality("dream-7b/", "dream-7b-a8/", calibration=Path("calibration.parquet"))
    quantizer.validate_quality("dream-7b/", "dream-7b-a8/", calibration=3)  # type: ignore[arg-type]
    quantizer.quantize_model("smol-lm/", "smol-lm-int4/", calibration="imatrix.gguf")
    print(arrow_quant_v2.calibration.record.__name__)


async def service() -> None:
    result = await AsyncArrowQuantV2().quantize_diffusion_model("dream-7b/", "dream-7b-int2/", progress=True)
    assert_type(result, QuantizeResult)
    print(result["quantized_path"], (await AsyncArrowQuantV2().plan("dream-7b/", bit_width=2))["parts"])
    await AsyncArrowQuantV2().validate_quality("dream-7b/")  # type: ignore[call-arg]


def configuration() -> DiffusionQuantConfig:
    config = DiffusionQuantConfig(deployment_profile="cloud", min_accuracy=0.9, layer_bit_widths={"lm_head": 8})
    assert_type(config.bit_width, Literal[2, 3, 4, 5, 6, 8])
    assert_type(config.modality, Literal["text", "code", "image", "audio"] | None)
    assert_type(config.sensitive_layer_names, tuple[str, ...])
    for bits in (2, 4, 8):
        config.bit_width = bits
    config.sensitive_layer_names = ["lm_head"]
    config.target_bpw = None
    assert_type(config.time_group_boundaries, Literal["optimal", "equal"])
    config.time_group_boundaries = "equal"
    try:
        config.validate()
    except ConfigurationError as error:
        assert_type(error.field, str | None)
    # Wrong types are seen without running it.
    config.bit_width = "4"  # type: ignore[assignment]
    config.fail_fast = None  # type: ignore[assignment]
    config.bits = 4  # type: ignore[attr-defined]
    DiffusionQuantConfig(bits=4)  # type: ignore[call-arg]
    return config


def arrays() -> None:
    quantizer = ArrowQuantV2()
    weights = {"w": np.zeros((64, 128), np.float32)}
    quantizer.dequantize(quantizer.quantize(weights, bit_width=4, group_size=128))


def sql() -> list[str]:
    connection = arrow_quant_v2.connect(models={"dream": "dream-7b/"}, num_threads=2)
    assert_type(connection, Connection)
    connection.register("numbers", connection.sql("SELECT 1 AS n").collect())
    result = connection.sql("SELECT tensor FROM dream.tensors")
    assert_type(result, Result)
    print(result.to_pandas(), result.to_polars(), functions.quantize.name)
    return result.column_names


if __name__ == "__main__":
    try:
        job()
        asyncio.run(service())
    except ArrowQuantError as error:
        print(error.tensor, error.field, error.path)
