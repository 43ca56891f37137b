#!/usr/bin/env python3
"""llama-quantize's work, done by the function that it calls in llama.cpp's library.

    llama_quantize.py LIBRARY IN.gguf OUT.gguf TYPE [--threads N] [--imatrix FILE] [--pure]

LIBRARY is libllama of llama.cpp 0.5 (in that archive `libllama.v0.5.0.so`), with the libraries that it needs beside it; the archive that
`npm pack @node-llama-cpp/linux-x64@3.22.1` fetches has them. IN.gguf is a model of 16-bit or 32-bit floats, such as
`arrow-quant quantize MODEL IN.gguf --type bf16` writes. TYPE is a name of llama-quantize, such as q4_k_m. FILE is an importance
matrix of llama-imatrix in GGUF; reading it needs the packages numpy and gguf. With --pure every matrix gets the type itself, the
embedding and the head too. Prints wall and CPU seconds as JSON.
"""

import argparse
import ctypes as c
import json
import sys
import time

from common import cpu_seconds

# enum llama_ftype of llama.h.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
ERROR = 4  # enum ggml_log_level of ggml.h
LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class Importance(c.Structure):
    """llama_model_imatrix_data: one tensor's importance of each input channel. An entry without a name ends an array of them."""

    _fields_ = [("name", c.c_char_p), ("data", c.POINTER(c.c_float)), ("size", c.c_size_t)]


class Parameters(c.Structure):
    """llama_model_quantize_params of llama.cpp 0.5."""

    _fields_ = [
        ("threads", c.c_int32), ("file_type", c.c_int), ("output_type", c.c_int), ("embedding_type", c.c_int),
        ("allow_requantize", c.c_bool), ("quantize_output", c.c_bool), ("only_copy", c.c_bool), ("pure", c.c_bool),
        ("keep_split", c.c_bool), ("dry_run", c.c_bool),
        ("importance", c.POINTER(Importance)), ("metadata", c.c_void_p), ("tensor_types", c.c_void_p),
        ("pruned_layers", c.c_void_p), ("max_buffer_bytes", c.c_size_t), ("later_fields", c.c_uint8 * 64),
    ]  # fmt: skip


def load(path):
    """The library, and the default parameters. A library that lays the parameters out differently is refused."""
    try:
        library = c.CDLL(path)
        library.llama_model_quantize_default_params.restype = Parameters
        library.llama_model_quantize.argtypes = [c.c_char_p, c.c_char_p, c.POINTER(Parameters)]
        library.llama_model_quantize.restype = c.c_uint32
    except (OSError, AttributeError) as error:
        sys.exit(f"{path} is not llama.cpp's library: {error}")
    parameters = library.llama_model_quantize_default_params()
    found = parameters.threads, parameters.file_type, parameters.quantize_output, parameters.max_buffer_bytes
    if found != (0, FILE_TYPES["q8_0"], True, 8 << 30):
        sys.exit(f"{path} has other default parameters than llama.cpp 0.5: {found}")
    return library, parameters


def read_importance(path):
    """An importance matrix for the parameters: the mean square of each input channel, by tensor and expert."""
    import numpy as np
    from gguf import GGUFReader

    arrays = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    entries = []
    for name, sums in arrays.items():
        if name.endswith(".in_sum2"):
            tensor = name.removesuffix(".in_sum2")
            counts = arrays[tensor + ".counts"].reshape(-1, 1)
            sums = sums.reshape(len(counts), -1)
            # Without a sample every channel counts the same, as in llama-quantize.
            means = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
            entries.append(Importance(tensor.encode(), (c.c_float * means.size)(*means.ravel().tolist()), means.size))
    if not entries:
        sys.exit(f"{path} holds no importance matrix: no tensor's name ends in .in_sum2")
    return (Importance * (len(entries) + 1))(*entries)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama", metavar="LIBRARY")
    parser.add_argument("source", metavar="IN.gguf")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("type", metavar="TYPE", type=str.lower, choices=FILE_TYPES, help=", ".join(FILE_TYPES))
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads, 0 for one a core; the default")
    parser.add_argument("--imatrix", metavar="FILE", help="an importance matrix of llama-imatrix, in GGUF")
    parser.add_argument("--pure", action="store_true", help="no other types for the head, the embedding and single layers")
    args = parser.parse_args()

    library, parameters = load(args.llama)
    errors = []
    log = LOG(lambda level, text, _: errors.append(text.decode(errors="replace").strip()) if level == ERROR else None)
    library.llama_log_set(log, None)
    library.llama_backend_init()
    parameters.threads = args.threads
    parameters.file_type = FILE_TYPES[args.type]
    parameters.pure = args.pure
    if args.imatrix:
        parameters.importance = read_importance(args.imatrix)
    start, cpu = time.perf_counter(), cpu_seconds()
    status = library.llama_model_quantize(args.source.encode(), args.out.encode(), parameters)
    if status != 0:
        sys.exit(f"llama_model_quantize failed with status {status}: {'; '.join(errors)}")
    print(json.dumps({"wall": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}))


if __name__ == "__main__":
    main()
