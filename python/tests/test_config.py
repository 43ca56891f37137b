"""The configuration: every field, and where its value comes from."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from arrow_quant_v2 import ArrowQuantError, ConfigurationError, DiffusionQuantConfig
from arrow_quant_v2._native import FIELDS


class Field(NamedTuple):
    """A field: its default, other values that it can hold, and what it refuses."""

    name: str
    default: Any
    allowed: list[Any]
    wrong_types: list[Any]
    wrong_values: list[Any]


FLAG: dict[str, Any] = {"allowed": [True, False], "wrong_types": ["true", 1, None], "wrong_values": ["yes", 0, []]}

CASES = [
    Field("deployment_profile", "local", ["edge", "cloud"], [1, None], ["phone", "Edge", ""]),
    Field("modality", None, ["text", "code", "image", "audio", None], [1, ["text"]], ["video", ""]),
    Field("variant", None, ["fp16", "non_ema", None], [1, ["fp16"]], ["", "a/b", "a.b"]),
    Field("format", None, ["gguf", "arrow-quant", None], [1, ["gguf"]], ["GGUF", "", "zip"]),
    Field("architecture", None, ["llama", "qwen2", None], [1, ["llama"]], ["", "a b", "a/b"]),
    Field("pre_tokenizer", None, ["llama-bpe", "gpt-4o", None], [1, ["qwen2"]], ["", "a b"]),
    Field("bit_width", 4, [2, 3, 4, 5, 6, 8], ["4", 4.5, None, True], [7, 16, 0, -2, 2**70]),
    Field("type", "int4", ["int2", "int3", "int8", "q4_k", "q4_k_m"], [4, None], ["int7", "INT4", "q2_0"]),
    Field("no_fallback", False, **FLAG),
    Field("group_size", 128, [16, 32, 64, 128, 256], ["64", 64.5, None], [100, 512, 0, -32]),
    Field("scheme", "affine", ["affine", "asymmetric", "symmetric"], [1, None], ["linear", "Affine"]),
    Field("method", "mse", ["mse", "minmax", "unbiased", "ldlq"], [1, None], ["best"]),
    Field("min_accuracy", 0.85, [0.0, 0.5, 1.0, 1, 0], ["0.9", None, True], [-0.01, 1.01, math.nan, math.inf]),
    Field("min_sqnr_db", None, [12.5, 0.0, -3.0, 20, None], ["20", [20]], [math.nan, math.inf]),
    Field("fail_fast", False, **FLAG),
    Field("tensors", None, ["attn|mlp", "", None], [1, ["a"]], ["(", "[z-a]"]),
    Field("skip_sensitive_layers", False, **FLAG),
    Field("sensitive_layer_names", (), [("lm_head", "unet/conv_in.weight"), ()], ["lm_head", 1, None], [[1], [None]]),
    Field("sensitive_layer_patterns", (), [(r"\.gate\.", "^a"), ()], ["^a", 1, None], [["("], [1]]),
    Field(
        "layer_bit_widths",
        {},
        [{"lm_head": 8, r"mlp\.down": 4, "a": 2, "b": 16}, {"lm_head": "q6_k"}, {}],
        [[("a", 2)], "a=2", None],
        [{"a": 7}, {"a": "4"}, {"(": 4}, {1: 2}],
    ),
    Field("enable_mixed_precision", True, **FLAG),
    Field("target_model_size_mb", None, [1900.0, 0.5, 3, None], ["1.9GB", True], [0, -1.0, math.nan, math.inf]),
    Field("target_bpw", None, [3.5, 64, None], ["4", True], [0.0, 64.5, -1, math.nan]),
    Field("enable_time_aware", True, **FLAG),
    Field("num_time_groups", 10, [1, 50, 100], ["10", 1.5, None], [0, 101, -1]),
    Field("time_group_boundaries", "optimal", ["equal", "optimal"], [1, None], ["even", "Optimal", ""]),
    Field("calibration_samples", 128, [1, 1_000_000], ["many", 1.5, None], [0, -1]),
    Field("enable_spatial", True, **FLAG),
    Field("num_threads", 0, [1, 1024, 0], ["all", 1.5, None], [-1, 1025]),
    Field("enable_streaming", True, **FLAG),
    Field("max_memory_limit_mb", None, [192, 300, None], ["1GB", 300.5], [191, 0, -1]),
]

VARIABLES = [
    ("ARROW_QUANT_BIT_WIDTH", "bit_width", "2", 2, "7"),
    ("ARROW_QUANT_TYPE", "type", "int2", "int2", "int7"),
    ("ARROW_QUANT_GROUP_SIZE", "group_size", " 32 ", 32, "33"),
    ("ARROW_QUANT_MIN_ACCURACY", "min_accuracy", "0.5", 0.5, "high"),
    ("ARROW_QUANT_FAIL_FAST", "fail_fast", "true", True, "maybe"),
    ("ARROW_QUANT_NUM_TIME_GROUPS", "num_time_groups", "7", 7, "0"),
    ("ARROW_QUANT_CALIBRATION_SAMPLES", "calibration_samples", "9", 9, "some"),
    ("ARROW_QUANT_NUM_THREADS", "num_threads", "3", 3, "-1"),
    ("ARROW_QUANT_MAX_MEMORY_MB", "max_memory_limit_mb", "300", 300, "1"),
]

PROFILES = {
    "edge": {
        "bit_width": 2,
        "type": "int2",
        "group_size": 256,
        "min_accuracy": 0.65,
        "num_time_groups": 5,
        "calibration_samples": 32,
        "enable_spatial": False,
    },
    "local": {},
    "cloud": {
        "bit_width": 8,
        "type": "int8",
        "group_size": 64,
        "min_accuracy": 0.95,
        "num_time_groups": 20,
        "calibration_samples": 512,
    },
}

# A value for every field that is not its default, with what is hard to write down among them.
CHANGED: dict[str, Any] = {
    "deployment_profile": "edge",
    "modality": "audio",
    "variant": "fp16",
    "format": "arrow-quant",
    "architecture": "llama",
    "pre_tokenizer": "gpt-4o",
    "bit_width": 8,
    "type": "int8",
    "no_fallback": True,
    "group_size": 32,
    "scheme": "symmetric",
    "method": "minmax",
    "min_accuracy": 0.1 + 0.2,
    "min_sqnr_db": -1e-300,
    "fail_fast": True,
    "tensors": "a: 'b' #\n\"c\" \\d é",
    "skip_sensitive_layers": True,
    "sensitive_layer_names": ("null", "1", "true", "", "it's"),
    "sensitive_layer_patterns": (r"^\d+$",),
    "layer_bit_widths": {"1": 2, r"a\.b'\"": 16},
    "enable_mixed_precision": True,
    "target_model_size_mb": None,
    "target_bpw": math.pi,
    "enable_time_aware": False,
    "num_time_groups": 1,
    "time_group_boundaries": "equal",
    "calibration_samples": 2**40,
    "enable_spatial": False,
    "num_threads": 3,
    "enable_streaming": False,
    "max_memory_limit_mb": 300,
}


def values(config: DiffusionQuantConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in FIELDS}


def changed(config: DiffusionQuantConfig) -> set[str]:
    """The fields that are not as they are by default."""
    return {name for name in FIELDS if getattr(config, name) != getattr(DiffusionQuantConfig(), name)}


def of_one_value(field: str) -> set[str]:
    """The fields that change with a field: a width is that of a type."""
    return {"bit_width", "type"} if field in ("bit_width", "type") else {field}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the environment have no part in the tests."""
    for name in os.environ:
        if name.startswith("ARROW_QUANT_") and name != "ARROW_QUANT_ISA":
            monkeypatch.delenv(name)


def test_every_field_has_a_case() -> None:
    assert FIELDS == tuple(case.name for case in CASES)
    assert set(CHANGED) == set(FIELDS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_field(case: Field) -> None:
    config = DiffusionQuantConfig()
    assert getattr(config, case.name) == case.default
    for value in case.allowed:
        setattr(config, case.name, value)
        found = getattr(config, case.name)
        assert found == value
        assert type(found) is type(value) or isinstance(value, (int, dict))
        assert DiffusionQuantConfig(**{case.name: value}) == config or case.name == "deployment_profile"
        assert changed(config) <= of_one_value(case.name)

    before = getattr(config, case.name)
    for wrong in [*case.wrong_types, *case.wrong_values]:
        with pytest.raises(ConfigurationError, match=f"^{case.name} ") as caught:
            setattr(config, case.name, wrong)
        assert caught.value.field == case.name, wrong
        assert getattr(config, case.name) == before, wrong
        with pytest.raises(ConfigurationError, match=f"^{case.name} ") as caught:
            DiffusionQuantConfig(**{case.name: wrong})
        assert caught.value.field == case.name, wrong
    with pytest.raises(AttributeError):
        delattr(config, case.name)


@pytest.mark.parametrize("field", [name for name in CHANGED if CHANGED[name] is not None])
def test_configurations_are_equal_if_every_field_is(field: str) -> None:
    config, other = DiffusionQuantConfig(), DiffusionQuantConfig()
    assert config == other and not config != other
    value = not getattr(config, field) if isinstance(CHANGED[field], bool) else CHANGED[field]
    setattr(other, field, value)
    assert config != other and not config == other
    setattr(config, field, value)
    assert config == other


def test_a_configuration_equals_nothing_else() -> None:
    config = DiffusionQuantConfig()
    assert config != values(config) and config != None and config != "local"  # noqa: E711
    with pytest.raises(TypeError):
        hash(config)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles(profile: str) -> None:
    config = DiffusionQuantConfig.from_profile(profile)
    expected = {case.name: case.default for case in CASES} | {"deployment_profile": profile} | PROFILES[profile]
    assert values(config) == expected
    assert DiffusionQuantConfig(deployment_profile=profile) == config
    config.validate()


@pytest.mark.parametrize("profile", ["phone", "Edge", "", 1, None])
def test_a_profile_that_there_is_not(profile: Any) -> None:
    with pytest.raises(ConfigurationError, match="^deployment_profile is .*, allowed: edge, local or cloud$") as caught:
        DiffusionQuantConfig.from_profile(profile)
    assert caught.value.field == "deployment_profile"


def test_a_field_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError, match="no field 'bits'; did you mean bit_width?") as caught:
        DiffusionQuantConfig(bits=4)  # type: ignore[call-arg]
    assert caught.value.field == "bits"
    config: Any = DiffusionQuantConfig()
    with pytest.raises((AttributeError, ConfigurationError)):
        config.bits = 4
    with pytest.raises(TypeError):
        DiffusionQuantConfig("edge")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_bpw": 3.0, "target_model_size_mb": 1.0}, "target_model_size_mb and target_bpw are both set"),
        ({"layer_bit_widths": {"a": 8}, "enable_mixed_precision": False}, "layer_bit_widths is set but"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DiffusionQuantConfig(**fields).validate()
    # One after the other they can be set, for the way from one to another may be through both.
    config = DiffusionQuantConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ConfigurationError, match=message):
        config.validate()


def test_what_is_read_cannot_be_changed_in_place() -> None:
    config = DiffusionQuantConfig(
        sensitive_layer_names=["a"], sensitive_layer_patterns=("b",), layer_bit_widths={"c": 8}
    )
    assert (config.sensitive_layer_names, config.sensitive_layer_patterns) == (("a",), ("b",))
    assert isinstance(config.layer_bit_widths, MappingProxyType)
    widths: Any = config.layer_bit_widths
    with pytest.raises(TypeError):
        widths["d"] = 4
    # What is read can be written, and with more.
    other = DiffusionQuantConfig()
    for name in FIELDS:
        setattr(other, name, getattr(config, name))
    assert other == config
    other.layer_bit_widths = {**config.layer_bit_widths, "d": 4}
    other.sensitive_layer_names = [*config.sensitive_layer_names, "e"]
    assert dict(other.layer_bit_widths) == {"c": 8, "d": 4} and other.sensitive_layer_names == ("a", "e")
    assert dict(config.layer_bit_widths) == {"c": 8}


def all_changed() -> DiffusionQuantConfig:
    config = DiffusionQuantConfig(**CHANGED)
    assert values(config) == CHANGED
    return config


CONFIGURATIONS: list[Callable[[], DiffusionQuantConfig]] = [
    DiffusionQuantConfig,
    lambda: DiffusionQuantConfig.from_profile("edge"),
    lambda: DiffusionQuantConfig.from_profile("cloud"),
    lambda: DiffusionQuantConfig(target_model_size_mb=1e-9, enable_mixed_precision=False),
    all_changed,
]


@pytest.mark.parametrize("make", CONFIGURATIONS)
def test_a_representation_evaluates_to_an_equal_configuration(make: Callable[[], DiffusionQuantConfig]) -> None:
    config = make()
    again = eval(repr(config), {"DiffusionQuantConfig": DiffusionQuantConfig})
    assert again == config and values(again) == values(config)


@pytest.mark.parametrize("make", CONFIGURATIONS)
def test_copies_are_equal_and_apart(make: Callable[[], DiffusionQuantConfig]) -> None:
    config = make()
    copies = [copy.copy(config), copy.deepcopy(config)]
    copies += [pickle.loads(pickle.dumps(config, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for again in copies:
        assert type(again) is DiffusionQuantConfig
        assert again == config
        again.calibration_samples += 1
        assert again != config


@pytest.mark.parametrize("make", CONFIGURATIONS)
def test_yaml_gives_back_what_was_written(make: Callable[[], DiffusionQuantConfig], tmp_path: Path) -> None:
    config, path = make(), tmp_path / "c.yaml"
    config.to_yaml(path)
    assert DiffusionQuantConfig.from_yaml(str(path)) == config
    assert all(f"{name}:" in path.read_text() for name in FIELDS)


def test_a_yaml_file_is_over_the_profile_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("deployment_profile: cloud\nbit_width: 4\nlayer_bit_widths: {lm_head: 8}\n")
    expected = DiffusionQuantConfig.from_profile("cloud")
    expected.bit_width = 4
    expected.layer_bit_widths = {"lm_head": 8}
    assert DiffusionQuantConfig.from_yaml(path) == expected
    path.write_text("# nothing\n")
    assert DiffusionQuantConfig.from_yaml(path) == DiffusionQuantConfig()


@pytest.mark.parametrize(
    ("text", "message", "field"),
    [
        ("bit_width: 7", "bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8", "bit_width"),
        ("min_acuracy: 0.9", "there is no field 'min_acuracy'; did you mean min_accuracy?", "min_acuracy"),
        ("deployment_profile: phone", "deployment_profile is 'phone', allowed: ", "deployment_profile"),
        ("a: [", "not YAML: ", None),
        ("4", "expected fields and their values", None),
    ],
)
def test_a_yaml_file_that_is_wrong(text: str, message: str, field: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert (caught.value.path, caught.value.field) == (str(path), field)


@pytest.mark.parametrize(
    ("field", "value", "python", "yaml"),
    [
        ("tensors", 3, "is 3, allowed: a regular expression, or None for all", "or null for all"),
        ("min_sqnr_db", "high", "is 'high', allowed: a number of dB, or None for no floor", "or null for no floor"),
        ("max_memory_limit_mb", 5, "is 5, allowed: 192 or more, or None for no limit", "or null for no limit"),
        ("target_bpw", True, "is True, allowed: a number above 0 and up to 64, or None for no target", "is true, allowed: "),
        ("bit_width", None, "is None, allowed: 2, 3, 4, 5, 6 or 8", "is null, allowed: 2, 3, 4, 5, 6 or 8"),
        ("fail_fast", "yes", "is 'yes', allowed: True or False", "is 'yes', allowed: true or false"),
        ("sensitive_layer_names", [None, True], "is [None, True], allowed: ", "is [null,true], allowed: "),
        ("layer_bit_widths", {"a": None}, "of 'a' is None, allowed: 2, 3, 4, 5, 6, 8, a block type such as q6_k, or 16 to keep it", "of 'a' is null, "),
        ("tensors", "(", "is '(', which is not a regular expression: unclosed group", "unclosed group"),
    ],
)
def test_values_are_written_as_python_or_yaml_has_them(
    field: str, value: Any, python: str, yaml: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig(**{field: value})
    assert str(caught.value).startswith(f"{field} {python}")
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({field: value}))
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: {field} ") and yaml in str(caught.value)


def test_a_contradiction_is_told_in_python() -> None:
    with pytest.raises(ConfigurationError) as caught:
        DiffusionQuantConfig(enable_mixed_precision=False, layer_bit_widths={"a": 8})
    assert str(caught.value) == (
        "layer_bit_widths is set but enable_mixed_precision is False: set it to True, or leave out layer_bit_widths"
    )


def test_documentation_speaks_of_none() -> None:
    assert "or None for all" in (DiffusionQuantConfig.tensors.__doc__ or "")
    assert "Allowed: True or False." in (DiffusionQuantConfig.fail_fast.__doc__ or "")


def test_a_yaml_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "c.yaml"
    with pytest.raises(ArrowQuantError, match="no such file") as caught:
        DiffusionQuantConfig.from_yaml(path)
    assert caught.value.path == str(path)
    with pytest.raises(ArrowQuantError, match="no such file") as caught:
        DiffusionQuantConfig().to_yaml(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(("variable", "field", "text", "value", "wrong"), VARIABLES)
def test_a_variable_overrides_its_field(
    variable: str, field: str, text: str, value: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionQuantConfig()
    monkeypatch.setenv(variable, text)
    assert config == DiffusionQuantConfig()
    config.apply_env_overrides()
    assert getattr(config, field) == value
    assert changed(config) == of_one_value(field)
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ConfigurationError, match=f"^{variable} is '{wrong}', allowed: ") as caught:
        config.apply_env_overrides()
    assert caught.value.field == field
    assert getattr(config, field) == value
    monkeypatch.setenv(variable, "")
    config.apply_env_overrides()
    assert getattr(config, field) == value


def test_a_variable_that_is_almost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_QUANT_BITWIDTH", "2")
    with pytest.raises(ConfigurationError, match="did you mean ARROW_QUANT_BIT_WIDTH?"):
        DiffusionQuantConfig().apply_env_overrides()


def test_the_later_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("deployment_profile: edge\ngroup_size: 64\nmin_accuracy: 0.7\nnum_threads: 1\n")
    monkeypatch.setenv("ARROW_QUANT_MIN_ACCURACY", "0.8")
    monkeypatch.setenv("ARROW_QUANT_NUM_THREADS", "2")
    config = DiffusionQuantConfig.from_yaml(path)
    config.apply_env_overrides()
    config.num_threads = 3
    # Of the profile, the file, the environment and the program.
    found = (config.bit_width, config.group_size, config.min_accuracy, config.num_threads)
    assert found == (2, 64, 0.8, 3)
    # A profile that is set later changes no other field.
    config.deployment_profile = "cloud"
    assert config.bit_width == 2


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", [DiffusionQuantConfig, all_changed])
def test_every_protocol_of_pickle(make: Callable[[], DiffusionQuantConfig], protocol: int) -> None:
    config = make()
    again = pickle.loads(pickle.dumps(config, protocol))
    assert type(again) is DiffusionQuantConfig
    assert values(again) == values(config)


@pytest.mark.parametrize("path", [3, None, ["c.yaml"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError):
        DiffusionQuantConfig.from_yaml(path)


@pytest.mark.parametrize("number", [np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_other_types(number: Any) -> None:
    config = DiffusionQuantConfig(min_accuracy=number, target_bpw=number)
    assert (config.min_accuracy, config.target_bpw) == (0.5, 0.5)
    assert DiffusionQuantConfig(bit_width=np.int64(2), num_threads=np.uint8(3)).num_threads == 3
