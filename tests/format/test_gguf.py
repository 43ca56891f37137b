"""GGUF files, read by a reader that knows the layout alone: what a llama becomes, and what is refused."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from read_gguf import read_gguf

ROOT = Path(__file__).resolve().parents[2]
COMMAND = os.environ.get("ARROW_QUANT", str(ROOT / "target/debug/arrow-quant"))
WIDTH, HEADS, KEYS, LAYERS, TOKENS = 256, 4, 2, 9, 300
EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tensors(inner):
    """A llama's tensors: F32 values that BF16 holds."""
    random, shapes = np.random.default_rng(7), {"model.embed_tokens": (TOKENS, WIDTH), "model.norm": (WIDTH,), "lm_head": (TOKENS, WIDTH)}
    kv = WIDTH // HEADS * KEYS
    for layer in range(LAYERS):
        sizes = {"q": WIDTH, "k": kv, "v": kv, "o": WIDTH}
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj": (rows, WIDTH) for name, rows in sizes.items()}
        mlp = {"gate": (inner, WIDTH), "up": (inner, WIDTH), "down": (WIDTH, inner)}
        shapes |= {f"model.layers.{layer}.mlp.{name}_proj": shape for name, shape in mlp.items()}
        shapes |= {f"model.layers.{layer}.{name}": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
    values = {f"{name}.weight": random.standard_normal(shape, dtype="f4") for name, shape in shapes.items()}
    return {name: (array.view("u4") >> 16 << 16).view("f4") for name, array in values.items()}


def write_model(directory, inner=512, without=(), **changes):
    """A model directory; a change to None takes a key of config.json away."""
    directory.mkdir()
    header, data = {}, b""
    for name, array in tensors(inner).items():
        content = (array.view("u4") >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    head = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": inner, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KEYS, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    config |= {"rope_theta": 5e5, "vocab_size": TOKENS, "bos_token_id": 0, "eos_token_id": 1} | changes
    files = {"config.json": {key: value for key, value in config.items() if value is not None}}
    split = {"type": "Split", "pattern": {"Regex": EXPRESSION}, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    vocabulary = {"<s>": 0, "</s>": 1} | {chr(0x100 + i): i + 2 for i in range(256)}
    added = [{"id": i, "content": text, "special": True} for i, text in enumerate(["<s>", "</s>"])]
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["\u0141", "\u0142"]]}
    files["tokenizer.json"] = {"added_tokens": added, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, levels]}, "model": model}
    files["tokenizer_config.json"] = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": "{{ x }}"}
    for name, content in files.items():
        if name not in without:
            (directory / name).write_text(json.dumps(content))
    return directory


def quantize(model, out, *arguments):
    return subprocess.run([COMMAND, "quantize", model, out, *arguments], capture_output=True, text=True)


def expected(name, array):
    """Name and values in GGUF: the rows of a head of queries and keys, from two halves, are pairs."""
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module = name.removesuffix(".weight")
    if module in outer:
        return f"{outer[module]}.weight", array
    _, _, layer, module = module.split(".", 3)
    if heads := {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEYS}.get(module):
        array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
    return f"blk.{layer}.{MODULES[module]}.weight", array


def loss(found, original):
    """Of the values, in dB."""
    return 10 * np.log10(np.sum(original**2.0) / np.sum((found - original) ** 2.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


# The least that is left of Gaussian weights, in dB.
LEAST = {"Q4_0": 19, "Q5_0": 25, "Q8_0": 40, "Q4_K": 20, "Q5_K": 26, "Q6_K": 32}


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k", "q6_k", "q5_k_s", "q4_k_m"])
def test_llama_is_read_back(model, tmp_path, name):
    out = tmp_path / "tiny.gguf"
    done = quantize(model, out, "--type", name, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    metadata, arrays = read_gguf(out)
    originals = dict(expected(*item) for item in tensors(512).items())
    assert arrays.keys() == originals.keys()
    for tensor, original in originals.items():
        kind, found = arrays[tensor]
        assert found.shape == original.shape
        if original.ndim == 1:
            assert kind == "F32" and np.array_equal(found, original)
        else:
            assert loss(found, original) > LEAST[kind], (tensor, kind)
    kinds = {tensor: kind for tensor, (kind, _) in arrays.items()}
    if name == "q4_k_m":
        assert kinds["output.weight"] == "Q6_K" and kinds["token_embd.weight"] == "Q4_K"
        # Of nine blocks: the first, every third from the fourth on, and the last two.
        more = [layer for layer in range(LAYERS) if kinds[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
        assert more == [0, 3, 6, 7, 8] and metadata["general.file_type"] == 15
    elif name == "q5_k_s":
        assert kinds["output.weight"] == "Q6_K" and kinds["blk.0.ffn_down.weight"] == "Q5_K"
    else:
        assert set(kinds.values()) == {"F32", name.upper()}
    assert report["stored_bytes"] == out.stat().st_size
    assert metadata["llama.attention.head_count_kv"] == KEYS and metadata["llama.block_count"] == LAYERS
    assert metadata["tokenizer.ggml.pre"] == "qwen2" and len(metadata["tokenizer.ggml.tokens"]) == TOKENS
    assert metadata["tokenizer.ggml.merges"] == ["\u0141 \u0142"] and metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.chat_template"] == "{{ x }}" and metadata["general.name"] == "tiny-llama"


def test_report_is_beside_the_file(model, tmp_path):
    out = tmp_path / "tiny.gguf"
    assert quantize(model, out).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf", "tiny.gguf.arrow_quant.json"]
    shown = subprocess.run([COMMAND, "report", out, "--json"], capture_output=True, text=True)
    encodings = {tensor["encoding"] for tensor in json.loads(shown.stdout)["tensors"]}
    # Without a type, the mix that users of llama.cpp take at as many bits.
    assert encodings == {"q4_k", "q6_k", "BF16"}
    again = quantize(model, out)
    assert again.returncode == 1 and "exists already" in again.stderr
    resumed = quantize(model, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr


def test_bytes_do_not_depend_on_threads(model, tmp_path):
    for threads in ("1", "2"):
        assert quantize(model, tmp_path / f"{threads}.gguf", "--threads", threads).returncode == 0
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def same_tensors(first, second):
    (metadata, found), (of_other, others) = read_gguf(first), read_gguf(second)
    assert {key: value for key, value in metadata.items() if key != "general.name"} == {
        key: value for key, value in of_other.items() if key != "general.name"
    }
    assert {name: (kind, array.tobytes()) for name, (kind, array) in found.items()} == {
        name: (kind, array.tobytes()) for name, (kind, array) in others.items()
    }


def sql(statement):
    return subprocess.run([COMMAND, "sql", statement, "--format", "csv"], capture_output=True, text=True)


def test_query_is_written_as_gguf(model, tmp_path):
    """COPY … STORED AS GGUF and quantize --query write what quantize does, with the tokenizer of the model that is named."""
    assert quantize(model, tmp_path / "model.gguf", "--type", "q4_k").returncode == 0
    query = f"SELECT * FROM weights('{model}')"
    done = sql(f"COPY ({query}) TO '{tmp_path}/copied.gguf' STORED AS GGUF OPTIONS (type 'q4_k', files '{model}')")
    assert done.returncode == 0, done.stderr
    head, rows = done.stdout.split()
    assert head == "count" and int(rows) >= len(tensors(512))
    same_tensors(tmp_path / "copied.gguf", tmp_path / "model.gguf")
    arguments = ["--query", query, tmp_path / "queried.gguf", "--type", "q4_k", "--files", model, "--quiet"]
    done = subprocess.run([COMMAND, "quantize", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same_tensors(tmp_path / "queried.gguf", tmp_path / "model.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.gguf{ending}" for name in ("model", "copied", "queried") for ending in ("", ".arrow_quant.json")
    }


@pytest.mark.parametrize(
    "options, expected",
    [
        ("", "config.json"),
        ("OPTIONS (type 'q4_k', files 'nowhere')", "nowhere"),
        ("OPTIONS (type 'q9')", "q9"),
        ("OPTIONS (typo 'q4_k')", "typo"),
        ("OPTIONS (format 'mlx')", "STORED AS"),
        ("PARTITIONED BY (tensor)", "partition"),
    ],
)
def test_wrong_copy_is_one_line_and_leaves_nothing(model, tmp_path, options, expected):
    partition, options = (options, "") if options.startswith("PART") else ("", options)
    done = sql(f"COPY (SELECT * FROM weights('{model}')) TO '{tmp_path}/out.gguf' STORED AS GGUF {partition} {options}")
    assert done.returncode == 1, done.stderr
    assert expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_copy_does_not_replace_a_file(model, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    done = sql(f"COPY (SELECT * FROM weights('{model}')) TO '{tmp_path}/out.gguf' STORED AS GGUF OPTIONS (files '{model}')")
    assert done.returncode == 1 and "exists" in done.stderr, done.stderr
    assert (tmp_path / "out.gguf").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_tied_head_is_not_written(tmp_path):
    model = write_model(tmp_path / "tied", tie_word_embeddings=True)
    assert quantize(model, tmp_path / "tied.gguf", "--type", "q4_k_m").returncode == 0
    _, arrays = read_gguf(tmp_path / "tied.gguf")
    assert "output.weight" not in arrays and arrays["token_embd.weight"][0] == "Q6_K"


def test_rows_that_blocks_do_not_divide_have_another_type(tmp_path):
    model = write_model(tmp_path / "narrow", inner=544)
    done = quantize(model, tmp_path / "narrow.gguf", "--type", "q4_k", "--json")
    assert done.returncode == 0, done.stderr
    _, arrays = read_gguf(tmp_path / "narrow.gguf")
    assert arrays["blk.0.ffn_down.weight"][0] == "Q5_0" and arrays["blk.0.ffn_up.weight"][0] == "Q4_K"
    down = next(t for t in json.loads(done.stdout)["tensors"] if t["tensor"] == "model.layers.0.mlp.down_proj.weight")
    assert down["because"] == "rows of 544 are no multiple of 256, as q4_k needs"
    refused = quantize(model, tmp_path / "strict.gguf", "--type", "q4_k", "--no-fallback")
    assert refused.returncode == 1 and "rows of 544 are no multiple of 256" in refused.stderr
    assert not list(tmp_path.glob("strict*"))


WRONG = [
    (dict(architectures=["BertModel"]), (), "the architecture BertModel, known for GGUF: llama, qwen2", "--architecture"),
    (dict(architectures=None, model_type="x"), (), "the architecture of the model_type x", "--architecture"),
    ({}, ["config.json"], "there is no config.json beside the weights", ""),
    ({}, ["tokenizer.json"], "there is no tokenizer.json or tokenizer.model beside the weights", ""),
    (dict(hidden_size=None), (), "`hidden_size` is not there, expected a whole number above 0", ""),
    (dict(num_hidden_layers="9"), (), '`num_hidden_layers` is "9"', ""),
    (dict(num_hidden_layers=10), (), "needs blk.9.attn_norm.weight", ""),
    (dict(num_attention_heads=8, head_dim=16), (), "expected 32 rows by config.json", ""),
    (dict(rope_scaling={"type": "su", "factor": 2}), (), "rotary positions are scaled by 'su'", ""),
]


@pytest.mark.parametrize("changes, without, expected, advice", WRONG, ids=[case[2][:30] for case in WRONG])
def test_model_that_would_not_load_is_refused(tmp_path, changes, without, expected, advice):
    model = write_model(tmp_path / "model", without=without, **changes)
    refused = quantize(model, tmp_path / "out.gguf")
    assert refused.returncode == 1 and expected in refused.stderr and advice in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


ARGUMENTS = [
    (["--architecture", "bert"], "there is no architecture 'bert', allowed: llama"),
    (["--pre", "qwen"], "there is no pre-tokenizer 'qwen', allowed: default"),
    (["--type", "q4_k_xl"], "q4_k_xl"),
    (["--format", "zip"], "zip"),
    (["--format", "arrow-quant"], "is the name of a .gguf file"),
    (["--format", "arrow-quant", "--type", "q4_k_m"], "is the name of a .gguf file"),
]


@pytest.mark.parametrize("arguments, expected", ARGUMENTS, ids=[" ".join(case[0]) for case in ARGUMENTS])
def test_wrong_arguments_are_refused(model, tmp_path, arguments, expected):
    refused = quantize(model, tmp_path / "out.gguf", *arguments)
    assert refused.returncode in (1, 2) and expected in refused.stderr, refused.stderr
    assert not list(tmp_path.iterdir())
