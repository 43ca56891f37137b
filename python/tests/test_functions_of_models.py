"""`plan`, `inspect`, `report` and `quantize_model`: keywords, dicts as configuration, and how notebooks show the results."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import arrow_quant_v2
import pytest
from arrow_quant_v2 import (
    ArrowQuantV2,
    AsyncArrowQuantV2,
    ConfigFields,
    ConfigurationError,
    DiffusionQuantConfig,
    ModelNotFoundError,
)
from arrow_quant_v2._native import FIELDS


def test_fields_are_keywords_over_a_configuration(digits_dit: Path, tmp_path: Path) -> None:
    result = arrow_quant_v2.quantize_model(digits_dit, tmp_path / "a", bit_width=8)
    assert result["bit_width"] == 8 and result["quantized_path"] == str(tmp_path / "a")
    result = arrow_quant_v2.quantize_model(digits_dit, tmp_path / "b", {"bit_width": 2, "group_size": 64}, group_size=32)
    assert {tensor["bits"] for tensor in result["tensors"]} >= {2}
    assert {tensor["group_size"] for tensor in result["tensors"]} == {None, 32}
    config = DiffusionQuantConfig(bit_width=2, min_accuracy=0.0)
    result = ArrowQuantV2().quantize_model(digits_dit, tmp_path / "c", config, bit_width=4)
    assert (result["bit_width"], config.bit_width) == (4, 2)


@pytest.mark.parametrize(
    ("config", "fields", "field", "message"),
    [
        (None, {"bitwidth": 4}, "bitwidth", "did you mean bit_width"),
        ({"bit_width": 7}, {}, "bit_width", "bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8"),
        ({1: 4}, {}, "config", "allowed: names of fields"),
        (DiffusionQuantConfig(), {"group": 4}, "group", "there is no field 'group'"),
        (DiffusionQuantConfig(), {"deployment_profile": "edge"}, "deployment_profile", "give one of them"),
        ([("bit_width", 4)], {}, "config", "allowed: a DiffusionQuantConfig, a dict of its fields, or None"),
    ],
)
def test_wrong_fields_are_named(
    config: Any, fields: dict[str, Any], field: str, message: str, digits_dit: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        arrow_quant_v2.quantize_model(digits_dit, tmp_path / "out", config, **fields)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_a_job_does(digits_dit: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.csv"
    plan = arrow_quant_v2.plan(digits_dit, bit_width=8, output=file)
    assert plan["weights"] == 1_257_988 and len(plan["tensors"]) == 52 and plan["parts"] == 1
    result = arrow_quant_v2.quantize_model(digits_dit, tmp_path / "out", plan=file)
    planned = {tensor["tensor"]: tensor["bits"] for tensor in plan["tensors"]}
    assert {tensor["tensor"]: tensor["bits"] for tensor in result["tensors"]} == planned
    with pytest.raises(ConfigurationError, match=r"output is '.*', allowed: a name that ends with \.parquet or \.csv"):
        arrow_quant_v2.plan(digits_dit, output=tmp_path / "plan.xls")
    told: list[float] = []
    arrow_quant_v2.plan(digits_dit, target_bpw=4, progress_callback=lambda progress, _: told.append(progress))
    assert told[0] == 0.0 and told[-1] == 1.0


def test_an_inspection_lists_tensors(digits_dit: Path, quantized_digits: Path) -> None:
    inspection = arrow_quant_v2.inspect(digits_dit)
    assert inspection["weights"] == sum(tensor["elements"] for tensor in inspection["tensors"]) == 1_257_988
    assert inspection["tensors"][0]["dtype"] == "BF16"
    assert inspection["files"] and inspection["quantized_by"] is None
    with pytest.raises(ConfigurationError):
        arrow_quant_v2.inspect(digits_dit, variant="fp16")
    assert {tensor["dtype"] for tensor in arrow_quant_v2.inspect(quantized_digits)["tensors"]} == {"BF16", "INT4"}
    with pytest.raises(ModelNotFoundError):
        arrow_quant_v2.inspect("nothing")


def test_a_report_and_its_page(quantized_digits: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    report = arrow_quant_v2.report(quantized_digits, html=page)
    assert report["settings"]["bit_width"] == 4 and 4 < report["bits_per_weight"] < 5
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(json.dumps(report)) == report
    with pytest.raises(ModelNotFoundError):
        arrow_quant_v2.report(tmp_path)


def test_the_same_to_be_awaited(digits_dit: Path, quantized_digits: Path) -> None:
    async def work() -> None:
        quantizer = AsyncArrowQuantV2()
        assert (await quantizer.plan(digits_dit, bit_width=2))["tensors"]
        assert await quantizer.inspect(digits_dit) == arrow_quant_v2.inspect(digits_dit)
        assert await quantizer.report(quantized_digits) == arrow_quant_v2.report(quantized_digits)

    asyncio.run(work())


def test_signatures_have_every_field() -> None:
    assert tuple(ConfigFields.__annotations__) == FIELDS
    for function in (DiffusionQuantConfig, arrow_quant_v2.quantize_model, AsyncArrowQuantV2.plan):
        parameters = inspect.signature(function).parameters
        assert set(FIELDS) <= set(parameters), function
        assert parameters["bit_width"].default == 4
    for name in ("quantize_model", "quantize_diffusion_model", "quantize_query", "validate_quality", "plan", "quantize"):
        own, awaited = (inspect.signature(getattr(of, name)) for of in (ArrowQuantV2, AsyncArrowQuantV2))
        assert own.parameters == awaited.parameters
        assert inspect.iscoroutinefunction(getattr(AsyncArrowQuantV2, name))


def test_notebooks_show_results_and_names_stay_text(digits_dit: Path, tmp_path: Path) -> None:
    result = arrow_quant_v2.quantize_model(digits_dit, tmp_path / "<b>out")
    html = result._repr_html_()  # type: ignore[typeddict-item,attr-defined]
    assert "&lt;b&gt;out" in html and "<b>out" not in html
    assert "pos_embed" in html and "sqnr_db" in html
    assert "<table" in result["tensors"]._repr_html_()
    for shown in (arrow_quant_v2.plan(digits_dit), arrow_quant_v2.inspect(digits_dit), arrow_quant_v2.report(tmp_path / "<b>out")):
        assert "blocks.0.fc1.weight" in shown._repr_html_()  # type: ignore[attr-defined]
    quality = ArrowQuantV2().validate_quality(digits_dit, tmp_path / "<b>out")
    assert "per_layer_accuracy" not in quality._repr_html_() and "pos_embed" in quality._repr_html_()  # type: ignore[attr-defined]


def test_notebooks_show_rows() -> None:
    connection = arrow_quant_v2.connect()
    result = connection.sql("SELECT '<script>' AS \"<i>\", value AS n FROM range(100)")
    for shown, count in ((result, "the first 20 rows"), (result.collect(), "20 of 100 rows")):
        html = shown._repr_html_()
        assert "<script" not in html and "<i>" not in html and "&lt;script&gt;" in html
        assert count in html and html.count("<tr>") == 21
    assert "<td>" in connection.sql("SELECT x'00ff' AS data")._repr_html_()
    assert connection.sql("SELECT 1 + 1, upper('a')").column_names == ["1 + 1", "upper('a')"]
