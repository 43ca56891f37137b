#!/usr/bin/env python3
"""Writes large models of random weights that look like real ones, in blocks: memory stays below 150 MB.

    synth.py transformer OUT     a language model's 1.003 billion weights, BF16, five shards of at most 500 MB
    synth.py tensor OUT          a single tensor of 1.007 billion weights, F32, 4.03 GB

Of the weights of a matrix 97 % are Gaussian and 3 % Student-t with 4 degrees of freedom. Rows are scaled by a
log-normal factor, and 0.4 % of the input channels are 3 to 8 times as large. The same seed gives the same bytes.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
SHARD_BYTES = 500_000_000
BLOCK = 2_000_000
SIZE = {"BF16": 2, "F32": 4}


def transformer_tensors():
    """(name, shape, kind) of every tensor."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    key_value = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden), "embedding"
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,), "norm"
        for letter, out in (("q", hidden), ("k", key_value), ("v", key_value)):
            yield prefix + f"self_attn.{letter}_proj.weight", (out, hidden), "linear"
            yield prefix + f"self_attn.{letter}_proj.bias", (out,), "bias"
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden), "output"
        yield prefix + "post_attention_layernorm.weight", (hidden,), "norm"
        yield prefix + "mlp.gate_proj.weight", (inner, hidden), "linear"
        yield prefix + "mlp.up_proj.weight", (inner, hidden), "linear"
        yield prefix + "mlp.down_proj.weight", (hidden, inner), "output"
    yield "model.norm.weight", (hidden,), "norm"


def blocks(name, shape, kind, seed=0):
    """The tensor's rows as float32, some at a time."""
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    if kind == "norm":
        yield (1 + 0.15 * random.standard_normal(shape[0])).astype(np.float32)
        return
    if kind == "bias":
        yield (0.1 * random.standard_t(3, shape[0])).astype(np.float32)
        return
    rows, columns = shape
    channel = np.full(columns, 0.015 if kind == "embedding" else 0.02, np.float32)
    outliers = max(1, int(columns * 0.004))
    channel[random.choice(columns, outliers, replace=False)] *= random.uniform(3, 8, outliers).astype(np.float32)
    row = np.exp(0.25 * random.standard_normal(rows)).astype(np.float32)
    if kind == "output":
        outliers = max(1, int(rows * 0.0005))
        row[random.choice(rows, outliers, replace=False)] *= random.uniform(2, 5, outliers).astype(np.float32)
    step = max(1, BLOCK // columns)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        x = random.standard_normal((count, columns), dtype=np.float32)
        heavy = int(x.size * 0.03)
        x.reshape(-1)[random.integers(0, x.size, heavy)] = random.standard_t(4, heavy).astype(np.float32)
        x *= channel
        x *= row[start : start + count, None]
        yield x


def encode(x, dtype):
    """Float32 as stored, rounded to nearest even."""
    if dtype == "F32":
        return x.astype("<f4", copy=False)
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_file(path, tensors, dtype):
    """A safetensors file. It has its name only when it is complete."""
    header, offset = {}, 0
    for name, shape, _ in tensors:
        end = offset + int(np.prod(shape)) * SIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    with open(part, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, kind in tensors:
            for block in blocks(name, shape, kind):
                data = encode(block, dtype).data.cast("B")
                while data:
                    data = data[file.write(data) :]
    part.rename(path)


def transformer(out):
    """Writes the language model, unless it is there."""
    index_path = out / "model.safetensors.index.json"
    if index_path.exists():
        return
    shards, size = [[]], 0
    for tensor in transformer_tensors():
        bytes_ = int(np.prod(tensor[1])) * SIZE["BF16"]
        if shards[-1] and size + bytes_ > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += bytes_
    out.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(out / name, tensors, "BF16")
        weight_map |= {tensor[0]: name for tensor in tensors}
    total = sum(int(np.prod(shape)) * SIZE["BF16"] for _, shape, _ in transformer_tensors())
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    index_path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n")


def tensor(out):
    """Writes the model of one tensor, unless it is there."""
    path = out / "model.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_file(path, [("weight", (30720, 32768), "linear")], "F32")


if __name__ == "__main__":
    makers = {"transformer": transformer, "tensor": tensor}
    if len(sys.argv) != 3 or sys.argv[1] not in makers:
        sys.exit(__doc__)
    makers[sys.argv[1]](Path(sys.argv[2]))
