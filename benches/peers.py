#!/usr/bin/env python3
"""ggml's quantizers, through llama-cpp-python, beside ours.

    peers.py rates KERNELS                     one core's rates; KERNELS holds what the kernels' benchmark printed
    peers.py convert MODEL GGUF                a safetensors model of benches/synth.py as GGUF, its matrices BF16
    peers.py quantize GGUF OUT TYPE THREADS    llama-quantize of a whole model; prints its wall and CPU seconds

Needs numpy, and llama-cpp-python (and gguf for `convert`), without which rows say "not installed".
"""

import ctypes
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from common import cpu_seconds, kernel_rates, median, print_table

# ggml's tensor types and llama's file types.
TENSOR_TYPES = {"Q4_0": 2, "Q2_K": 10, "Q4_K": 12}
FILE_TYPES = {"Q4_0": 2, "Q4_K_M": 15}
ROWS, COLUMNS = 8192, 4096


def installed():
    """True if models can be converted and quantized by llama.cpp here."""
    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


# ---------------------------------------------------------------- kernels


def ggml():
    """The library of ggml's quantizers, None if it is not installed."""
    package = importlib.util.find_spec("llama_cpp")
    if package is None:
        return None
    library = ctypes.CDLL(str(Path(package.origin).parent / "lib/libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    return library


def ggml_rates(library):
    """Type to million weights per second, on one core, of a float32 tensor."""
    random = np.random.Generator(np.random.SFC64(7))
    weights = 0.02 * random.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    rates = {}
    for name, number in TENSOR_TYPES.items():
        library.ggml_quantize_init(number)
        out = np.empty(ROWS * library.ggml_row_size(number, COLUMNS), np.uint8)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            library.ggml_quantize_chunk(number, weights.ctypes.data, out.ctypes.data, 0, ROWS, COLUMNS, None)
            seconds.append(time.perf_counter() - start)
        # The first call touches the output's pages.
        rates[name] = weights.size / median(seconds[1:]) / 1e6
    return rates


def rates(kernels):
    """Prints our kernels' rates, ggml's, and the ratios."""
    ours = kernel_rates(Path(kernels).read_text())
    if not ours:
        sys.exit(f"{kernels} holds no table of the kernels' benchmark")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    library = ggml()
    theirs = ggml_rates(library) if library else {}
    print("Million weights per second on one core, and how many times ggml's rate that is\n")
    titles = [f"ggml {name}: {theirs[name]:.0f}" if theirs else f"ggml {name}: not installed" for name in TENSOR_TYPES]
    rows = []
    for (kernel, isa), rate in ours.items():
        if kernel.startswith("quantize "):
            ratios = [f"{rate / theirs[name]:.1f} ×" if theirs else "-" for name in TENSOR_TYPES]
            rows.append([kernel, isa, f"{rate:.0f}", *ratios])
    print_table(["kernel", "instruction set", "10⁶ weights/s", *titles], rows)


# ---------------------------------------------------------------- whole models


def convert(model, path):
    """Writes a model as llama.cpp's converter would."""
    import gguf

    model, path = Path(model), Path(path)
    config = json.loads((model / "config.json").read_text())
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for file in sorted(model.glob("*.safetensors")):
        data = np.memmap(file, np.uint8, "r")
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        for name, entry in json.loads(data[8:end].tobytes()).items():
            start, stop = (end + offset for offset in entry["data_offsets"])
            stored, shape = data[start:stop], entry["shape"]
            new_name = names.get_name(name, (".weight", ".bias"))
            if len(shape) == 1:
                writer.add_tensor(new_name, (stored.view("<u2").astype("<u4") << 16).view("<f4"))
            else:
                rows = stored.reshape(shape[0], 2 * shape[1])
                writer.add_tensor(new_name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def quantize(source, out, file_type, threads):
    """What llama-quantize does."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = int(threads)
    parameters.ftype = FILE_TYPES[file_type]
    start, cpu = time.perf_counter(), cpu_seconds()
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters))
    if status != 0:
        sys.exit(f"llama_model_quantize failed with status {status}")
    print(json.dumps({"wall": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}))


if __name__ == "__main__":
    modes = {"rates": (rates, 1), "convert": (convert, 2), "quantize": (quantize, 4)}
    mode, arguments = sys.argv[1:2], sys.argv[2:]
    if not mode or mode[0] not in modes or len(arguments) != modes[mode[0]][1]:
        sys.exit(__doc__)
    modes[mode[0]][0](*arguments)
