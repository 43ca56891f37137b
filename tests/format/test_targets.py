"""Safetensors files for other programs, decoded by their layouts' descriptions alone: they hold what our own directory holds."""

import json
import struct
import subprocess

import numpy as np
import pytest
from read_directory import read_directory
from read_gguf import read_gguf
from test_gguf import COMMAND, quantize, tensors, write_model

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
OTHERS = {"U8": "u1", "I8": "i1", "U32": "<u4", "I32": "<i4", "I64": "<i8"}


def read(path):
    """Metadata and tensors of a file; BF16 as F32."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, found = json.loads(data[8 : 8 + length]), {}
    metadata = header.pop("__metadata__", {})
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        content = data[8 + length + start : 8 + length + end]
        if tensor["dtype"] == "BF16":
            array = (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(content, (FLOATS | OTHERS)[tensor["dtype"]])
        found[name] = array.reshape(tensor["shape"])
    assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(data) - 8 - length
    return metadata, found


def unpack(words, bits, columns):
    """Codes of each row from one stream of bits, lowest first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view("u1").reshape(len(words), -1), axis=1, bitorder="little")
    return stream[:, : columns * bits].reshape(len(words), columns, bits) @ (1 << np.arange(bits))


def affine(codes, scales, minima):
    """Each product and sum rounded once to F32, as a fused multiply-add has it."""
    spread = lambda x: np.repeat(x.astype("f8"), codes.shape[1] // x.shape[1], axis=1)
    return (codes * spread(scales) + spread(minima)).astype("f4")


def mlx(found, config, module):
    about = config["quantization"].get(module) or config["quantization"]
    columns = found[f"{module}.scales"].shape[1] * about["group_size"]
    codes = unpack(found[f"{module}.weight"], about["bits"], columns)
    return affine(codes, found[f"{module}.scales"], found[f"{module}.biases"])


def sdnq(found, config, module):
    about, scale = config["quantization_config"], found[f"{module}.scale"][..., 0]
    dtype = next((d for d, modules in about["modules_dtype_dict"].items() if f"{module}.weight" in modules), about["weights_dtype"])
    bits, scale = int(dtype.removeprefix("uint")), scale.reshape(len(scale), -1)
    columns = scale.shape[1] * about["group_size"]
    codes = unpack(found[f"{module}.weight"].reshape(len(scale), -1), bits, columns)
    return affine(codes, scale, found[f"{module}.zero_point"].reshape(scale.shape))


def compressed(found, config, module):
    rows, columns = found[f"{module}.weight_shape"]
    groups = config["quantization_config"]["config_groups"].values()
    named = [group for group in groups if module in group["targets"]] or [g for g in groups if g["targets"] == ["Linear"]]
    about, scale = named[0]["weights"], found[f"{module}.weight_scale"]
    assert about["symmetric"] and scale.shape == (rows, columns // about["group_size"])
    codes = unpack(found[f"{module}.weight_packed"], about["num_bits"], columns)
    return affine(codes - 2 ** (about["num_bits"] - 1), scale, np.zeros_like(scale))


def comfyui(found, config, module):
    about = json.loads(bytes(found[f"{module}.comfy_quant"]))
    assert about["format"] == "awq_w4a16"
    scale, zeros = found[f"{module}.weight_scale"].T, found[f"{module}.weight_zeros"].T
    codes = unpack(found[f"{module}.weight"].view("u1"), 4, scale.shape[1] * about["group_size"])
    return affine(codes - 8, scale, zeros)


# What is written, how a module is read from it, the type, and what our own directory needs to have the same codes.
CASES = [
    ("mlx", mlx, ["--type", "int4", "--group-size", "64"], []),
    ("mlx", mlx, ["--type", "int3", "--group-size", "32"], []),
    ("mlx", mlx, ["--type", "int6", "--group-size", "128", "--layer-bit-widths", r"\.mlp\.=5"], []),
    ("sdnq", sdnq, ["--type", "int4", "--group-size", "32"], []),
    ("sdnq", sdnq, ["--type", "int2", "--group-size", "64", "--layer-bit-widths", r"\.mlp\.=8"], []),
    ("compressed-tensors", compressed, ["--type", "int4", "--group-size", "128"], ["--scheme", "symmetric"]),
    ("compressed-tensors", compressed, ["--type", "int8", "--group-size", "32"], ["--scheme", "symmetric"]),
    ("compressed-tensors", compressed, ["--group-size", "32", "--layer-bit-widths", r"\.mlp\.=8"], ["--scheme", "symmetric"]),
    ("comfyui", comfyui, ["--type", "int4", "--group-size", "64"], []),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.mark.parametrize("target, decode, arguments, own", CASES, ids=[f"{c[0]} {' '.join(c[2])}" for c in CASES])
def test_codes_are_those_of_our_own_directory(model, tmp_path, target, decode, arguments, own):
    out = tmp_path / ("out.safetensors" if target == "comfyui" else "out")
    done = quantize(model, out, "--format", target, *arguments)
    assert done.returncode == 0, done.stderr
    assert quantize(model, tmp_path / "own", *arguments, *own).returncode == 0
    expected, originals = read_directory(tmp_path / "own"), tensors(512)
    metadata, found = read(out if out.is_file() else out / "model.safetensors")
    config = {} if out.is_file() else json.loads((out / "config.json").read_text())
    assert metadata == {"format": "mlx" if target == "mlx" else "pt"}
    quantized = 0
    for name, original in originals.items():
        module = name.removesuffix(".weight")
        if name in found and found[name].shape == original.shape and found[name].dtype == np.dtype("f4"):
            assert np.array_equal(found[name], original), name
        else:
            value = decode(found, config, module)
            # ComfyUI's layout has the middle of a grid instead of its least value, which rounds once more.
            exact = target != "comfyui"
            close = np.allclose(value, expected[name], rtol=0, atol=1e-6 * np.abs(expected[name]).max())
            assert np.array_equal(value, expected[name]) if exact else close, name
            quantized += 1
    assert quantized >= 63 and not list(tmp_path.glob("*/parts"))


def test_runtimes_are_told_of_what_stays(model, tmp_path):
    for target, key, end in [("sdnq", "modules_to_not_convert", ".weight"), ("compressed-tensors", "ignore", "")]:
        assert quantize(model, tmp_path / target, "--format", target, "--sensitive-layer-names", "model.layers.3.mlp.down_proj").returncode == 0
        config = json.loads((tmp_path / target / "config.json").read_text())
        assert f"model.layers.3.mlp.down_proj{end}" in config["quantization_config"][key]
    assert "lm_head" in config["quantization_config"]["ignore"] and config["hidden_size"] == 256
    tied = write_model(tmp_path / "tied", tie_word_embeddings=True, rope_theta=None, rope_parameters={"rope_theta": 7.0, "rope_type": "linear", "factor": 2})
    assert quantize(tied, tmp_path / "out", "--for", "mlx").returncode == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 7.0 and config["rope_scaling"] == {"rope_type": "linear", "factor": 2}
    assert config["quantization"]["group_size"] == 64 and (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_floats_are_the_cast(model, tmp_path, dtype):
    for out in (tmp_path / "out", tmp_path / "out.safetensors"):
        assert quantize(model, out, "--format", "safetensors", "--type", dtype).returncode == 0
        _, found = read(out if out.is_file() else out / "model.safetensors")
        for name, original in tensors(512).items():
            cast = original.astype("f2").astype("f4") if dtype == "f16" else original
            assert np.array_equal(found[name].astype("f4"), cast), name
    assert quantize(model, tmp_path / "out.gguf", "--type", dtype).returncode == 0
    kinds = {kind for kind, _ in read_gguf(tmp_path / "out.gguf")[1].values()}
    assert kinds == {"F32", dtype.upper()}


def test_weight_beyond_half_precision_is_an_error(tmp_path):
    model = write_model(tmp_path / "model")
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-2:] = (0x4780).to_bytes(2, "little")  # 65536
    (model / "model.safetensors").write_bytes(data)
    refused = quantize(model, tmp_path / "out", "--format", "safetensors", "--type", "f16")
    assert refused.returncode == 1 and "post_attention_layernorm.weight: a weight is 65536, which F16 cannot hold" in refused.stderr and "--resume" not in refused.stderr
    assert not (tmp_path / "out").exists()


def flux():
    """A small Flux as diffusers has it."""
    random = np.random.default_rng(11)
    shapes = {"x_embedder": (256, 64), "context_embedder": (256, 128), "proj_out": (64, 256), "norm_out.linear": (512, 256)}
    for name in ("timestep_embedder", "guidance_embedder", "text_embedder"):
        shapes |= {f"time_text_embed.{name}.linear_1": (256, 256), f"time_text_embed.{name}.linear_2": (256, 256)}
    block, single = "transformer_blocks.0", "single_transformer_blocks.0"
    for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
        shapes[f"{block}.attn.{name}"] = (256, 256)
    for name in ("ff", "ff_context"):
        shapes |= {f"{block}.{name}.net.0.proj": (1024, 256), f"{block}.{name}.net.2": (256, 1024)}
    shapes |= {f"{block}.norm1.linear": (1536, 256), f"{block}.norm1_context.linear": (1536, 256)}
    shapes |= {f"{single}.attn.{name}": (256, 256) for name in ("to_q", "to_k", "to_v")}
    shapes |= {f"{single}.proj_mlp": (1024, 256), f"{single}.proj_out": (256, 1280), f"{single}.norm.linear": (768, 256)}
    values = {f"{name}.weight": random.standard_normal(shape, dtype="f4") for name, shape in shapes.items()}
    values |= {f"{name}.bias": random.standard_normal(shape[0], dtype="f4") for name, shape in shapes.items()}
    for name in (f"{block}.attn.norm_q", f"{block}.attn.norm_k", f"{block}.attn.norm_added_q", f"{block}.attn.norm_added_k"):
        values[f"{name}.weight"] = random.standard_normal(32, dtype="f4")
    return values | {f"{single}.attn.norm_{x}.weight": random.standard_normal(32, dtype="f4") for x in "qk"}


def write_flux(directory, values):
    directory.mkdir()
    header, data = {}, b""
    for name, array in values.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    head = json.dumps(header).encode()
    (directory / "diffusion_pytorch_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    (directory / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    return directory


def test_flux_has_its_original_names_in_gguf(tmp_path):
    values = flux()
    model = write_flux(tmp_path / "flux", values)
    assert quantize(model, tmp_path / "flux.gguf", "--type", "q8_0").returncode == 0
    metadata, found = read_gguf(tmp_path / "flux.gguf")
    assert metadata["general.architecture"] == "flux"
    weight = lambda *names: np.concatenate([values[f"{name}.weight"] for name in names])
    attention, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
    swapped = np.roll(values["norm_out.linear.weight"], 256, axis=0)
    expected = {
        "double_blocks.0.img_attn.qkv.weight": ("Q8_0", weight(*(f"{attention}.to_{x}" for x in "qkv"))),
        "double_blocks.0.txt_attn.qkv.weight": ("Q8_0", weight(*(f"{attention}.add_{x}_proj" for x in "qkv"))),
        "single_blocks.0.linear1.weight": ("Q8_0", weight(*(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp")),
        "single_blocks.0.linear2.weight": ("Q8_0", weight(f"{single}.proj_out")),
        "final_layer.adaLN_modulation.1.weight": ("F32", swapped),
        "final_layer.adaLN_modulation.1.bias": ("F32", np.roll(values["norm_out.linear.bias"], 256)),
        "img_in.weight": ("F32", weight("x_embedder")),
        "single_blocks.0.norm.query_norm.scale": ("F32", weight(f"{single}.attn.norm_q")),
    }
    for name, (kind, original) in expected.items():
        assert found[name][0] == kind and found[name][1].shape == original.shape, name
        assert np.abs(found[name][1] - original).max() <= (0.02 if kind == "Q8_0" else 0), name
    assert len(found) == len(values) - 2 * 2 * 2 - 3 * 2
    validated = subprocess.run([COMMAND, "validate", model, tmp_path / "flux.gguf", "--json"], capture_output=True, text=True)
    assert validated.returncode == 0 and min(t["sqnr_db"] or 99 for t in json.loads(validated.stdout)["tensors"]) > 40


WRONG = [
    (["--format", "compressed-tensors", "--scheme", "asymmetric"], "the target compressed-tensors cannot hold; allowed for it: symmetric"),
    (["--format", "mlx", "--scheme", "symmetric"], "the target mlx cannot hold; allowed for it: affine"),
    (["--format", "compressed-tensors", "--type", "int2"], "the target compressed-tensors cannot hold; allowed for it: int4, int8"),
    (["--format", "sdnq", "--type", "q4_k"], "the target sdnq cannot hold; allowed for it: int2, int4, int8"),
    (["--format", "mlx", "--type", "f16"], "the target mlx cannot hold"),
    (["--format", "safetensors"], "the target safetensors cannot hold; allowed for it: f32, f16, bf16"),
    (["--type", "f32"], "the target arrow-quant cannot hold"),
    (["--format", "comfyui", "--type", "int8", "--dry-run"], "the target comfyui cannot hold; allowed for it: int4"),
    (["--format", "comfyui"], "is to be a file of the format comfyui: choose a name that ends in .safetensors"),
    (["--for", "vllm", "--format", "mlx"], "cannot be used with"),
    (["--for", "onnx"], "invalid value 'onnx'"),
]


@pytest.mark.parametrize("arguments, expected", WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_what_a_target_cannot_hold_is_refused(model, tmp_path, arguments, expected):
    refused = quantize(model, tmp_path / "out", *arguments)
    assert refused.returncode in (1, 2) and expected in refused.stderr, refused.stderr
    assert not list(tmp_path.iterdir())


def test_models_that_a_target_has_no_place_for_are_refused(tmp_path):
    model = write_model(tmp_path / "model", without=["config.json"])
    for target in ("sdnq", "compressed-tensors", "mlx"):
        refused = quantize(model, tmp_path / "out", "--format", target)
        assert refused.returncode == 1 and "has no config.json, which a model in the format" in refused.stderr
    (model / "config.json").write_text('{"_class_name": "NoSuchTransformer"}')
    refused = quantize(model, tmp_path / "out.gguf")
    assert refused.returncode == 1 and "the model is a NoSuchTransformer, which is not known as GGUF: choose another format, or one of these as --architecture: aura, cosmos" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_formats_are_listed():
    shown = subprocess.run([COMMAND, "targets", "--json"], capture_output=True, text=True, check=True)
    formats = {each["format"]: each for each in json.loads(shown.stdout)}
    assert list(formats) == ["arrow-quant", "gguf", "sdnq", "compressed-tensors", "mlx", "comfyui", "safetensors"]
    assert formats["mlx"]["types"] == ["int2", "int3", "int4", "int5", "int6", "int8"] and formats["mlx"]["group_sizes"] == [32, 64, 128]
    assert "llama.cpp" in formats["gguf"]["runtimes"] and "q4_k_m" in formats["gguf"]["types"]
    text = subprocess.run([COMMAND, "targets"], capture_output=True, text=True, check=True).stdout
    assert all(name in text for name in formats) and "--for RUNTIME" in text


def test_layers_that_runtimes_fuse_become_the_same(model, tmp_path):
    width = ["--layer-bit-widths", "model.layers.0.self_attn.q_proj=8"]
    for extra in (width, ["--target-bpw", "8.5"], ["--min-accuracy", "0.9945"]):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        done = quantize(model, out, "--format", "compressed-tensors", *extra, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert extra[0] != "--target-bpw" or 8.2 < report["bits_per_weight"] <= 8.5
        found = {t["tensor"]: (t["bits"], t["group_size"]) for t in report["tensors"]}
        for layer in range(9):
            for fused in (["self_attn.q", "self_attn.k", "self_attn.v"], ["mlp.gate", "mlp.up"]):
                assert len({found[f"model.layers.{layer}.{name}_proj.weight"] for name in fused}) == 1
    because = json.loads(quantize(model, tmp_path / "x", "--format", "compressed-tensors", *width, "--json").stdout)["tensors"]
    k = next(t for t in because if t["tensor"] == "model.layers.0.self_attn.k_proj.weight")
    assert k["bits"] == 8 and k["because"].endswith("for model.layers.0.self_attn.q_proj.weight in one layer with it")
    flux_model = write_flux(tmp_path / "flux", flux())
    for extra in (["--target-bpw", "7.5"], ["--type", "q4_k", "--layer-bit-widths", "transformer_blocks.0.attn.to_q.weight=q8_0"]):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        done = quantize(flux_model, out, *extra)
        assert done.returncode == 0, done.stderr
    assert read_gguf(out)[1]["double_blocks.0.img_attn.qkv.weight"][0] == "Q8_0"


def test_models_that_would_be_misread_are_refused(tmp_path):
    values = flux()
    del values["transformer_blocks.0.attn.to_k.weight"]
    refused = quantize(write_flux(tmp_path / "flux", values), tmp_path / "out.gguf", "--type", "q8_0")
    assert refused.returncode == 1 and "it joins 3 tensors, of which 2 are there: get the whole model" in refused.stderr
    model = write_model(tmp_path / "gpt2", model_type="gpt2")
    refused = quantize(model, tmp_path / "out", "--for", "vllm")
    assert refused.returncode == 1 and "is a gpt2, whose layers are stored with inputs as rows" in refused.stderr
    values = {"a.weight": np.ones((64, 64), "f4"), "a.scales": np.ones((3, 3), "f4"), "a.weight_scale": np.ones((3, 3), "f4")}
    collision = write_flux(tmp_path / "collision", values)
    for target in ("mlx", "compressed-tensors"):
        refused = quantize(collision, tmp_path / "out", "--format", target, "--type", "int4", "--group-size", "32")
        assert refused.returncode == 1 and "which is another tensor of the model" in refused.stderr, refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["collision", "flux", "gpt2"]


def export(quantized, out, *arguments):
    return subprocess.run([COMMAND, "export", quantized, out, *arguments], capture_output=True, text=True)


EXPORTED = [
    ("mlx", mlx, ["--type", "int5", "--group-size", "64"]),
    ("sdnq", sdnq, ["--type", "int4", "--group-size", "128", "--layer-bit-widths", r"\.v_proj\.=8"]),
    ("compressed-tensors", compressed, ["--type", "int4", "--group-size", "128", "--scheme", "symmetric"]),
]


@pytest.mark.parametrize("target, decode, arguments", EXPORTED, ids=[case[0] for case in EXPORTED])
def test_an_export_has_the_codes_of_the_directory(model, tmp_path, target, decode, arguments):
    stay = ["--sensitive-layer-names", "lm_head,model.embed_tokens"]
    assert quantize(model, tmp_path / "own", *arguments, *stay).returncode == 0
    done = export(tmp_path / "own", tmp_path / "out", "--format", target, "--json")
    assert done.returncode == 0, done.stderr
    expected = read_directory(tmp_path / "own")
    _, found = read(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for name in tensors(512):
        module = name.removesuffix(".weight")
        if "_proj" in name:
            assert np.array_equal(decode(found, config, module), expected[name]), name
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "parts").exists()
    report = json.loads(done.stdout)
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert report["stored_bytes"] == files and report["settings"]["format"] == target
    validated = subprocess.run([COMMAND, "validate", model, tmp_path / "out"], capture_output=True, text=True)
    assert validated.returncode == 0, validated.stderr
    again = export(tmp_path / "own", tmp_path / "out", "--format", target)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_blocks_are_exported_to_gguf_as_they_are(model, tmp_path):
    assert quantize(model, tmp_path / "own", "--type", "q4_k").returncode == 0
    assert export(tmp_path / "own", tmp_path / "out.gguf").returncode == 0
    assert quantize(model, tmp_path / "own.gguf", "--type", "q4_k").returncode == 0
    exported, direct = (read_gguf(tmp_path / name)[1] for name in ("out.gguf", "own.gguf"))
    assert exported.keys() == direct.keys()
    for name, (kind, values) in direct.items():
        assert exported[name][0] == kind and np.array_equal(exported[name][1], values), name


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    assert quantize(model, tmp_path / "own", "--group-size", "256").returncode == 0
    left = sorted(path.name for path in tmp_path.iterdir())
    for target, expected in [
        ("mlx", "cannot be exported as it is: mlx has no groups of 256; quantize the model for this format instead"),
        ("compressed-tensors", "cannot be exported as it is: compressed-tensors has no groups of 256"),
        ("arrow-quant", "has the format arrow-quant already"),
        ("safetensors", "cannot be exported as it is"),
        ("zip", "zip"),
    ]:
        refused = export(tmp_path / "own", tmp_path / "out", "--format", target)
        assert refused.returncode in (1, 2) and expected in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    refused = export(model, tmp_path / "out", "--format", "mlx")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == left
