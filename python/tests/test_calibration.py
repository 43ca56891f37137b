"""What `calibration.record` measures is what NumPy computes from the same inputs; models are left as they were."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrow_quant_v2 import ConfigurationError, QuantizationError, statistics
from arrow_quant_v2.calibration import Recorder, record

SCHEMA = pa.schema(
    {
        "tensor": pa.string(),
        "timestep": pa.int64(),
        "state": pa.string(),
        "samples": pa.int64(),
        "channel_min": pa.list_(pa.float32()),
        "channel_max": pa.list_(pa.float32()),
        "channel_mean": pa.list_(pa.float32()),
        "channel_mean_square": pa.list_(pa.float32()),
        "histogram": pa.list_(pa.float64()),
        "histogram_min": pa.float32(),
        "histogram_max": pa.float32(),
    }
)


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    module.manual_seed(0)
    return module


def rows(recorder: Recorder) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The rows of a table by tensor, timestep and state; lists as arrays."""
    found = {}
    for row in recorder.table().to_pylist():
        values = {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}
        found[row["tensor"], row["timestep"], row["state"]] = values
    assert len(found) == recorder.table().num_rows
    return found


def check(row: dict[str, Any], batches: Sequence[np.ndarray], axis: int) -> None:
    """Compares a row with NumPy's figures of the inputs."""
    channels = [np.moveaxis(batch.astype(np.float64), axis, -1) for batch in batches]
    values = np.concatenate([batch.reshape(-1, batch.shape[-1]) for batch in channels])
    np.testing.assert_array_equal(row["channel_min"], values.min(0).astype(np.float32))
    np.testing.assert_array_equal(row["channel_max"], values.max(0).astype(np.float32))
    np.testing.assert_allclose(row["channel_mean_square"], np.square(values).mean(0), rtol=1e-6)
    np.testing.assert_allclose(row["channel_mean"], values.mean(0), rtol=1e-4, atol=1e-6 * np.abs(values).max())
    bins = len(row["histogram"])
    edges = np.linspace(row["histogram_min"], row["histogram_max"], bins + 1)
    assert row["histogram"].tolist() == np.histogram(values.astype(np.float32), edges)[0].tolist()
    assert row["histogram"].sum() == values.size
    width = edges[1] - edges[0]
    assert row["histogram_min"] <= values.min() < row["histogram_min"] + width
    assert row["histogram_max"] - width <= values.max() < row["histogram_max"]


# Layers


# From a name to how a layer is made, the shape of its inputs, and the axis of their channels.
LAYERS = {
    "Linear": (("Linear", 6, 3), (5, 6), -1),
    "Linear of tokens": (("Linear", 6, 3), (5, 7, 6), -1),
    "Linear of images": (("Linear", 6, 3), (5, 4, 4, 6), -1),
    "Linear without bias": (("Linear", 6, 3, False), (5, 6), -1),
    "Conv1d": (("Conv1d", 4, 3, 3), (5, 4, 9), 1),
    "Conv2d": (("Conv2d", 4, 3, 3, 2, 1), (5, 4, 8, 9), 1),
}


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16", "float64"))
@pytest.mark.parametrize("kind", LAYERS)
def test_statistics_are_those_of_numpy(torch: Any, kind: str, dtype: str) -> None:
    (name, *arguments), shape, axis = LAYERS[kind]
    model = torch.nn.Sequential(getattr(torch.nn, name)(*arguments)).to(getattr(torch, dtype))
    # Ranges that differ by batch, so that histograms grow.
    batches = [(scale * torch.randn(shape) + 0.3).to(getattr(torch, dtype)) for scale in (0.1, 40.0, 2.0)]
    with record(model) as recorder:
        recorder.at(3)
        for batch in batches:
            model(batch)
    row = rows(recorder)["0.weight", 3, ""]
    assert row["samples"] == 15
    check(row, [batch.float().numpy() for batch in batches], axis)


@pytest.mark.parametrize("kind", LAYERS)
def test_inputs_without_an_axis_of_samples_are_one(torch: Any, kind: str) -> None:
    (name, *arguments), shape, axis = LAYERS[kind]
    if name == "Linear":
        shape = shape[-2:]
    layer = getattr(torch.nn, name)(*arguments)
    values = torch.randn(shape)[0]
    with record(layer) as recorder:
        recorder.at(0)
        layer(values)
    row = rows(recorder)["weight", 0, ""]
    assert row["samples"] == 1
    check(row, [values.numpy()[None]], axis)


def test_channels_of_grouped_convolutions_are_those_of_their_weights(torch: Any) -> None:
    grouped, depthwise = torch.nn.Conv2d(6, 4, 3, groups=2), torch.nn.Conv1d(6, 6, 3, groups=6)
    images, sounds = torch.randn(3, 6, 5, 5), torch.randn(3, 6, 8)
    for layer, values in ((grouped, images), (depthwise, sounds)):
        with record(layer) as recorder:
            recorder.at(0)
            layer(values)
        row = rows(recorder)["weight", 0, ""]
        assert (row["samples"], len(row["channel_min"])) == (3, layer.weight.shape[1])
        by_group = values.numpy().reshape(3 * layer.groups, 6 // layer.groups, -1)
        check(row, [by_group], 1)


def test_every_layer_timestep_and_state_has_its_own(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    seen: dict[tuple[str, int, str], list[np.ndarray]] = {}
    with torch.no_grad(), record(model) as recorder:
        for timestep in (900, 0, 500):
            for state in ("unconditional", ""):
                recorder.at(timestep, state)
                for _ in range(2):
                    batch = (1 + timestep) * torch.randn(8, 4)
                    model(batch)
                    hidden = model[1](model[0].weight @ batch.T + model[0].bias[:, None]).T
                    seen.setdefault(("0.weight", timestep, state), []).append(batch.numpy())
                    seen.setdefault(("2.weight", timestep, state), []).append(hidden.numpy())
    found = rows(recorder)
    assert found.keys() == seen.keys()
    for key, batches in seen.items():
        assert found[key]["samples"] == 16
        values = np.concatenate(batches)
        np.testing.assert_allclose(found[key]["channel_max"], values.max(0), rtol=1e-4)
        np.testing.assert_allclose(found[key]["channel_mean_square"], np.square(values).mean(0), rtol=1e-4)
    table = recorder.table()
    assert table.schema == SCHEMA
    # In the order of the model, then states, then timesteps.
    keys = [(row["tensor"], row["state"], row["timestep"]) for row in table.to_pylist()]
    assert keys == sorted(keys)


def test_large_inputs_are_measured_in_parts(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(6, 2), torch.nn.Conv1d(4, 2, 3)])
    tokens, sounds = torch.randn(5, 7, 6), torch.randn(5, 4, 9)
    tables = []
    for elements in (statistics._ELEMENTS_AT_ONCE, 40, 1):
        monkeypatch.setattr(statistics, "_ELEMENTS_AT_ONCE", elements)
        with record(model) as recorder:
            recorder.at(0)
            model[0](tokens)
            model[1](sounds)
        check(rows(recorder)["0.weight", 0, ""], [tokens.numpy()], -1)
        check(rows(recorder)["1.weight", 0, ""], [sounds.numpy()], 1)
        tables.append(recorder.table().drop_columns(["channel_mean", "channel_mean_square"]))
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("bins", (2, 3, 512, 65536))
def test_histograms_of_any_size(torch: Any, bins: int) -> None:
    layer, values = torch.nn.Linear(4, 4), torch.randn(1000, 4)
    with record(layer, samples=1000, histogram_bins=bins) as recorder:
        recorder.at(0)
        layer(values)
    row = rows(recorder)["weight", 0, ""]
    assert bins // 2 <= len(row["histogram"]) <= bins
    check(row, [values.numpy()], -1)


def test_histograms_may_be_left_out(torch: Any) -> None:
    layer = torch.nn.Linear(4, 4)
    with record(layer, histogram_bins=0) as recorder:
        recorder.at(0)
        layer(torch.randn(8, 4))
    assert recorder.table().schema == pa.schema([field for field in SCHEMA if "histogram" not in field.name])


# Samples and passes


def test_no_more_than_so_many_samples_are_measured(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    batches = [torch.randn(8, 3, 4) for _ in range(4)]
    with record(model, samples=20) as recorder:
        for timestep in (0, 1):
            recorder.at(timestep)
            for batch in batches:
                model(batch)
    for timestep in (0, 1):
        row = rows(recorder)["0.weight", timestep, ""]
        assert row["samples"] == 20
        check(row, [batch.numpy() for batch in (*batches[:2], batches[2][:4])], -1)


def test_a_layer_that_is_called_twice_in_a_pass_has_the_same_samples_twice(torch: Any) -> None:
    class Twice(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, a: Any, b: Any) -> Any:
            return self.layer(a) + self.layer(b)

    model = Twice()
    passes = [(torch.randn(8, 4), 5 * torch.randn(8, 4)) for _ in range(3)]
    with record(model, samples=12) as recorder:
        recorder.at(0)
        for a, b in passes:
            model(a, b)
    row = rows(recorder)["layer.weight", 0, ""]
    assert row["samples"] == 12
    (a, b), (c, d), _ = passes
    check(row, [values.numpy() for values in (a, b, c[:4], d[:4])], -1)

    # Called without the model, each call is a pass.
    with record(model, samples=12) as recorder:
        recorder.at(0)
        for a, _ in passes:
            model.layer(a)
    row = rows(recorder)["layer.weight", 0, ""]
    assert row["samples"] == 12
    check(row, [passes[0][0].numpy(), passes[1][0][:4].numpy()], -1)


def test_a_second_block_adds_to_the_first(torch: Any) -> None:
    layer = torch.nn.Linear(4, 4)
    recorder = record(layer)
    recorder.at(0)
    batches = [torch.randn(8, 4) for _ in range(3)]
    with recorder:
        layer(batches[0])
        with pytest.raises(QuantizationError, match="is recording already"), recorder:
            pass
    layer(batches[1])
    with recorder:
        layer(batches[2])
    row = rows(recorder)["weight", 0, ""]
    assert row["samples"] == 16
    check(row, [batches[0].numpy(), batches[2].numpy()], -1)


def test_layers_that_get_nothing_have_no_rows(torch: Any) -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
    with record(model) as recorder:
        recorder.at(0)
        model[0](torch.ones(2, 4))
        # As an expert that no token goes to.
        model[1](torch.ones(0, 4))
    assert rows(recorder).keys() == {("0.weight", 0, "")}


# Names


def test_weights_are_named_as_in_the_state_dict(torch: Any) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(10, 4)
            self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2))
            self.same_block = self.blocks[0]
            self.transposed = torch.nn.ConvTranspose1d(4, 4, 1)
            self.head = torch.nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Any) -> Any:
            hidden = self.same_block(self.blocks[1](self.blocks[0](self.embed(tokens))))
            return self.head(self.transposed(hidden.mT).mT)

    model, tokens = Model(), torch.arange(10)[None]
    everything = {"embed.weight", "blocks.0.0.weight", "blocks.1.0.weight"}
    assert everything <= dict(model.named_parameters()).keys()
    for layers, component, expected in (
        (None, "", everything),
        (r"^blocks\.1", "", {"blocks.1.0.weight"}),
        (r"0$", "", {"blocks.0.0.weight", "blocks.1.0.weight"}),
        (r"^(?!head$)", "unet", {"unet/blocks.0.0.weight", "unet/blocks.1.0.weight"}),
    ):
        with record(model, layers=layers, component=component) as recorder:
            recorder.at(0)
            model(tokens)
        assert {tensor for tensor, _, _ in rows(recorder)} == expected


def test_layers_that_share_a_weight_are_measured_as_one(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    values = torch.randn(8, 4)
    with torch.no_grad(), record(model) as recorder:
        recorder.at(0)
        model(values)
        hidden = model[0].weight @ values.T
    (key, row), *others = rows(recorder).items()
    assert (key, row["samples"], others) == (("0.weight", 0, ""), 8, [])
    assert row["histogram"].sum() == 64
    inputs = np.concatenate([values.numpy(), hidden.T.numpy() + model[0].bias.detach().numpy()])
    np.testing.assert_allclose(row["channel_max"], inputs.max(0), rtol=1e-5)


def test_a_weight_that_is_computed_has_the_name_of_its_layer(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)))
    with record(model) as recorder:
        recorder.at(0)
        model(torch.randn(2, 4))
    assert rows(recorder).keys() == {("0.weight", 0, "")}


# What models get and give


def test_outputs_and_gradients_are_untouched(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    values = torch.randn(8, 1, 8, 8, requires_grad=True)

    def run() -> list[Any]:
        output = model(values)
        return [output, *torch.autograd.grad(output.square().sum(), [values, *model.parameters()])]

    before = run()
    with record(model) as recorder:
        recorder.at(0)
        during = run()
    assert all(torch.equal(a, b) for a, b in zip(before, during, strict=True))


def test_hooks_are_removed(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))

    def hooks() -> list[int]:
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    own = model[0].register_forward_pre_hook(lambda module, args: None)
    before = hooks()
    with record(model) as recorder:
        assert hooks() != before
        recorder.at(0)
        model(torch.ones(2, 4))
    assert hooks() == before
    with pytest.raises(KeyError, match="interrupted"), record(model):
        raise KeyError("interrupted")
    with pytest.raises(QuantizationError), record(model) as recorder:
        recorder.at(0)
        model(torch.full((2, 4), math.nan))
    assert hooks() == before
    own.remove()
    assert not any(hooks())


def test_a_pass_that_failed_is_over(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(3, 4))
    with record(model, layers="^0$") as recorder:
        recorder.at(0)
        for _ in range(2):
            with pytest.raises(RuntimeError):
                model(torch.ones(2, 4))
        model[0](torch.ones(2, 4))
        model[0](torch.ones(2, 4))
    assert rows(recorder)["0.weight", 0, ""]["samples"] == 8


def test_inputs_by_keyword_in_inference_mode_and_with_autocast(torch: Any) -> None:
    layer = torch.nn.Linear(4, 4)
    values = torch.randn(8, 4)
    with record(layer) as recorder:
        recorder.at(0)
        layer(input=values)
        recorder.at(1)
        with torch.inference_mode():
            layer(values.clone())
        recorder.at(2)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(values).dtype == torch.bfloat16
        recorder.at(3)
        with torch.autocast("cpu", torch.bfloat16):
            layer(values.to(torch.bfloat16))
    for timestep in range(3):
        check(rows(recorder)["weight", timestep, ""], [values.numpy()], -1)
    check(rows(recorder)["weight", 3, ""], [values.to(torch.bfloat16).float().numpy()], -1)


def test_inputs_of_any_layout(torch: Any) -> None:
    linear, conv = torch.nn.Linear(4, 4), torch.nn.Conv2d(4, 4, 1)
    tokens = torch.randn(4, 6, 5).permute(2, 1, 0)
    images = torch.randn(5, 4, 6, 6).to(memory_format=torch.channels_last)[:, :, ::2]
    for layer, values, axis in (
        (linear, tokens, -1),
        (linear, torch.randn(5, 1, 4).expand(5, 6, 4), -1),
        (conv, images, 1),
    ):
        with record(layer) as recorder:
            recorder.at(0)
            layer(values)
        check(rows(recorder)["weight", 0, ""], [values.numpy()], axis)


# Timesteps


def test_timesteps_of_every_kind(torch: Any) -> None:
    recorder = record(torch.nn.Linear(4, 4))
    kinds = (
        7,
        7.0,
        np.int32(7),
        np.float32(7),
        np.array([7, 7]),
        torch.tensor(7),
        torch.tensor([7.0]),
        torch.full((8,), 7),
        torch.full((8, 1), 7, dtype=torch.bfloat16),
    )
    for timestep in kinds:
        recorder.at(timestep)
        assert recorder._now == (7, "")
        assert type(recorder._now[0]) is int


def test_other_timesteps_are_refused(torch: Any) -> None:
    recorder = record(torch.nn.Linear(4, 4))
    allowed = "allowed: whole numbers from 0 on; scale or round others"
    for timestep, message in (
        (-1, f"timestep is -1, {allowed}"),
        (0.5, f"timestep is 0.5, {allowed}"),
        (torch.tensor(980.25), f"timestep is 980.25, {allowed}"),
        (math.inf, f"timestep is inf, {allowed}"),
        (1e19, f"timestep is 1e+19, {allowed}"),
        (True, f"timestep is True, {allowed}"),
        (torch.tensor(True), f"timestep is True, {allowed}"),
        ("7", f"timestep is '7', {allowed}"),
        (None, f"timestep is None, {allowed}"),
        ([7], rf"timestep is [7], {allowed}"),
        (torch.tensor([]), f"timestep is None, {allowed}"),
        (torch.tensor([4, 4, 5]), "timestep has 4 and 5, allowed: one timestep a forward pass"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            recorder.at(timestep)
        assert (str(caught.value), caught.value.field) == (message, "timestep")
    with pytest.raises(ConfigurationError, match="state is 1, allowed: a string") as caught:
        recorder.at(0, 1)  # type: ignore[arg-type]
    assert caught.value.field == "state"


def test_a_pass_before_its_timestep_is_an_error(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with record(model) as recorder, pytest.raises(QuantizationError) as caught:
        model(torch.ones(2, 4))
    assert str(caught.value) == ("0.weight was called before recorder.at(timestep), which says what its inputs are of")
    assert caught.value.tensor == "0.weight"
    with pytest.raises(QuantizationError, match="nothing was measured: run forward passes in the block"):
        recorder.table()


# Errors


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_values_that_are_no_numbers_are_refused(torch: Any, dtype: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).to(getattr(torch, dtype))
    good = torch.ones(2, 4, dtype=getattr(torch, dtype))
    for value, said in ((math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")):
        bad = good.clone()
        bad[1, 2] = value
        with record(model) as recorder:
            recorder.at(0)
            model(good)
            recorder.at(40, "masked")
            with pytest.raises(QuantizationError) as caught:
                model(bad)
        error = caught.value
        assert str(error) == f"0.weight: timestep 40, state 'masked': an input of channel 2 is {said}"
        assert error.tensor == "0.weight"
        # What was measured before is as it was.
        assert rows(recorder).keys() == {("0.weight", 0, ""), ("1.weight", 0, "")}


def test_values_whose_squares_leave_float32_are_refused(torch: Any) -> None:
    layer = torch.nn.Linear(4, 4)
    with record(layer) as recorder:
        recorder.at(0)
        with pytest.raises(QuantizationError, match="weight: timestep 0: inputs of channel 0 are too large"):
            layer(torch.full((2, 4), 1e20))
        layer(torch.full((2, 4), 1e18))
    assert rows(recorder)["weight", 0, ""]["channel_mean_square"][0] == np.float32(1e36)


def test_wrong_arguments_are_refused(torch: Any) -> None:
    layer = torch.nn.Linear(4, 4)
    for arguments, field, message in (
        ({"samples": 0}, "samples", "samples is 0, allowed: 1 or more"),
        ({"samples": 1.5}, "samples", "samples is 1.5, allowed: 1 or more"),
        ({"samples": True}, "samples", "samples is True, allowed: 1 or more"),
        ({"histogram_bins": 1}, "histogram_bins", "histogram_bins is 1, allowed: 0 for none, or 2 to 65536"),
        ({"histogram_bins": 65537}, "histogram_bins", "histogram_bins is 65537, allowed: 0 for none, or 2 to 65536"),
        ({"layers": "("}, "layers", "layers is '(', which is not a regular expression: missing"),
        ({"layers": ["a"]}, "layers", "layers is ['a'], allowed: a regular expression, or None"),
        ({"layers": "x"}, "layers", "layers is 'x', which matches none of the model's: "),
        ({"component": None}, "component", "component is None, allowed: a string"),
        ({"model": torch.nn.ReLU()}, "model", "model has no Linear, Conv1d or Conv2d, which are what is measured"),
        ({"model": "unet"}, "model", "model is of type str, allowed: a torch.nn.Module"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            record(**{"model": layer, **arguments})
        assert str(caught.value).startswith(message)
        assert caught.value.field == field


@pytest.mark.parametrize("library", ("torch", "pyarrow"))
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(None, [], 1, 0)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"{library} is not installed: run `pip install {library}`"):
        record(None) if library == "torch" else recorder.table()  # type: ignore[arg-type]


# Files


@pytest.fixture
def recorder(torch: Any) -> Recorder:
    """One that has measured two timesteps."""
    layer = torch.nn.Linear(4, 4)
    with record(layer) as recorder:
        for timestep in (0, 500):
            recorder.at(timestep)
            layer(torch.randn(8, 4))
    return recorder


def test_a_file_is_written_as_a_whole(recorder: Recorder, tmp_path: Path) -> None:
    path = tmp_path / "calibration.parquet"
    path.write_text("replaced")
    recorder.write(path)
    assert pq.read_table(path) == recorder.table()
    recorder.write(str(path.with_name("other.PARQUET")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["calibration.parquet", "other.PARQUET"]


def test_a_write_that_fails_leaves_what_was_there(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.parquet"
    path.write_text("kept")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(QuantizationError) as caught:
        recorder.write(path)
    assert str(caught.value) == f"{path} cannot be written: No space left on device"
    assert caught.value.path == str(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("calibration.parquet", "kept")]


def test_files_that_cannot_be_written(recorder: Recorder, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "calibration.parquet"
    with pytest.raises(QuantizationError, match="cannot be written: No such file or directory") as caught:
        recorder.write(missing)
    assert caught.value.path == str(missing)
    with pytest.raises(ConfigurationError, match=r"allowed: names that end with \.parquet") as refused:
        recorder.write(tmp_path / "calibration.csv")
    assert refused.value.field == "path"
    assert not list(tmp_path.iterdir())


# The example model, whose table was measured when it was trained


def make_dit(torch: Any, directory: Path) -> Any:
    """The example model in torch."""
    from safetensors.torch import load_file

    nn, functional = torch.nn, torch.nn.functional
    size, heads, patch = 128, 4, 2

    def modulated(x: Any, shift: Any, scale: Any) -> Any:
        return functional.layer_norm(x, (size,), eps=1e-6) * (1 + scale) + shift

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
            self.fc1, self.fc2 = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
            self.modulation = nn.Linear(size, 6 * size)

        def forward(self, x: Any, c: Any) -> Any:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, -1)
            qkv = self.qkv(modulated(x, shift1, scale1)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            x = x + gate1 * self.proj(functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
            hidden = functional.gelu(self.fc1(modulated(x, shift2, scale2)), approximate="tanh")
            return x + gate2 * self.fc2(hidden)

    class DiT(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Linear(patch * patch, size)
            self.pos_embed = nn.Parameter(torch.zeros(16, size))
            self.time_fc1, self.time_fc2 = nn.Linear(size, size), nn.Linear(size, size)
            self.label_embed = nn.Embedding(11, size)
            self.blocks = nn.ModuleList(Block() for _ in range(4))
            self.final_modulation, self.proj_out = nn.Linear(size, 2 * size), nn.Linear(size, patch * patch)

        def forward(self, x: Any, t: Any, y: Any) -> Any:
            patches = x.view(-1, 4, patch, 4, patch).permute(0, 1, 3, 2, 4).reshape(-1, 16, patch * patch)
            frequencies = torch.exp(-math.log(10000) * torch.arange(size // 2) / (size // 2))
            angles = t[:, None].float() * frequencies
            time = self.time_fc1(torch.cat([angles.cos(), angles.sin()], -1))
            c = functional.silu(self.time_fc2(functional.silu(time)) + self.label_embed(y))
            h = self.patch_embed(patches) + self.pos_embed
            for block in self.blocks:
                h = block(h, c)
            shift, scale = self.final_modulation(c).unsqueeze(1).chunk(2, -1)
            out = self.proj_out(modulated(h, shift, scale))
            return out.view(-1, 4, 4, patch, patch).permute(0, 1, 3, 2, 4).reshape(-1, 8, 8)

    model = DiT()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(directory / "model.safetensors").items()})
    return model.eval()


@pytest.fixture
def shipped(digits_dit: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of the example's table by tensor and timestep."""
    path = digits_dit / "calibration.parquet"
    if not path.exists():
        pytest.skip(f"there is no {path.name} with the example model")
    return {(row["tensor"], row["timestep"]): row for row in pq.read_table(path).to_pylist()}


@pytest.fixture
def reference(digits_dit: Path) -> Iterator[Any]:
    """Inputs and outputs of the example model."""
    path = digits_dit / "reference.npz"
    if not path.exists():
        pytest.skip(f"there is no {path.name} with the example model")
    with np.load(path) as arrays:
        yield arrays


def test_some_inputs_of_the_example_lie_within_its_table(
    torch: Any, digits_dit: Path, shipped: dict[tuple[str, int], dict[str, Any]], reference: Any
) -> None:
    model = make_dit(torch, digits_dit)
    timesteps = [int(name[2:]) for name in reference if name.startswith("x_")]
    with torch.no_grad(), record(model) as recorder:
        for t in timesteps:
            recorder.at(t)
            x, y = torch.from_numpy(reference[f"x_{t}"]), torch.from_numpy(reference[f"y_{t}"])
            output = model(x, torch.full((len(x),), t), y)
            np.testing.assert_allclose(output.numpy(), reference[f"out_{t}"], atol=1e-4)
    found = rows(recorder)
    assert {(tensor, t) for tensor, t, _ in found} == {key for key in shipped if key[1] in timesteps}
    for (tensor, t, _), row in found.items():
        whole = shipped[tensor, t]
        assert (row["channel_min"] >= np.array(whole["channel_min"]) - 1e-4).all()
        assert (row["channel_max"] <= np.array(whole["channel_max"]) + 1e-4).all()
        if tensor.startswith("time_"):
            # These depend on the timestep alone.
            for column in ("channel_min", "channel_max", "channel_mean_square"):
                np.testing.assert_allclose(row[column], whole[column], atol=1e-6)


def test_the_table_of_the_example_is_measured_again(
    torch: Any, digits_dit: Path, shipped: dict[tuple[str, int], dict[str, Any]], reference: Any
) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.tensor(digits.images / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    model = make_dit(torch, digits_dit)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), record(model) as recorder:
        for t in range(0, 1000, 40):
            chosen = torch.randint(0, len(images), (128,), generator=generator)
            noise = torch.randn(128, 8, 8, generator=generator)
            x = signal[t].sqrt() * images[chosen] + (1 - signal[t]).sqrt() * noise
            if f"x_{t}" in reference and not np.allclose(x[:32].numpy(), reference[f"x_{t}"], atol=1e-6):
                pytest.skip("this torch draws other random numbers than that which the example was trained with")
            recorder.at(t)
            model(x, torch.full((128,), t), labels[chosen])
    found = rows(recorder)
    assert {(tensor, t) for tensor, t, _ in found} == shipped.keys()
    for (tensor, t, _), row in found.items():
        for column in ("channel_min", "channel_max", "channel_mean_square"):
            np.testing.assert_allclose(row[column], shipped[tensor, t][column], rtol=1e-3, atol=1e-4)


# Second moments


def test_second_moments_are_those_of_numpy_and_layers_share_them(torch: Any, tmp_path: Path) -> None:
    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.o = (torch.nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Any) -> Any:
            return self.o(self.q(x) * self.k(x))

    model = Attention()
    batches = [torch.randn(3, 4, 6) + 0.5 for _ in range(3)]
    with torch.no_grad(), record(model, samples=8, second_moments=4) as recorder:
        for timestep, batch in enumerate(batches):
            recorder.at(timestep // 2)
            model(batch)
    path = tmp_path / "calibration.parquet"
    recorder.write(path)
    moments = pq.ParquetFile(tmp_path / "calibration.moments.parquet")
    assert moments.num_row_groups == 2
    found = moments.read().to_pylist()
    assert [(row["input"], row["tensors"], row["start"], row["size"], row["channels"]) for row in found] == [
        ("q.weight", ["q.weight", "k.weight"], 0, 4, 6),
        ("q.weight", ["q.weight", "k.weight"], 4, 2, 6),
        ("o.weight", ["o.weight"], 0, 4, 6),
        ("o.weight", ["o.weight"], 4, 2, 6),
    ]
    # Two batches at the first timestep have six samples, and one at the second three.
    values = np.concatenate([batch.reshape(-1, 6).numpy() for batch in batches])
    for row in found[:2]:
        part = values[:, row["start"] : row["start"] + row["size"]]
        expected = (part.T @ part)[np.triu_indices(row["size"])]
        np.testing.assert_allclose(row["gram"], expected, rtol=1e-5)
        assert (row["samples"], row["timestep"]) == (36, 0)


def test_second_moments_that_are_no_number_are_refused(torch: Any) -> None:
    for wrong in (-1, 1 << 21, True, 2.5):
        with pytest.raises(ConfigurationError, match="second_moments is") as caught:
            record(torch.nn.Linear(2, 2), second_moments=wrong)  # type: ignore[arg-type]
        assert caught.value.field == "second_moments"
