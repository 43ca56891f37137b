"""Reads a GGUF file by the layout alone, with NumPy: keys, and every tensor as float32. Without our package, and without ggml's."""

import struct
from pathlib import Path

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Number: name, weights and bytes of a block.
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 6: ("Q5_0", 32, 22), 8: ("Q8_0", 32, 34)}
TYPES |= {12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)}


def read_gguf(path):
    """Keys and values; and name to (type, array), shapes as PyTorch has them."""
    data, at = Path(path).read_bytes(), 4

    def number(code):
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value

    def text():
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind != 9:
            return number(SCALARS[kind])
        kind, count = number("I"), number("Q")
        return [value(kind) for _ in range(count)]

    assert data[:4] == b"GGUF" and number("I") == 3
    tensors, keys = number("Q"), number("Q")
    metadata = {}
    for _ in range(keys):
        key = text()
        assert key not in metadata
        metadata[key] = value(number("I"))
    infos = []
    for _ in range(tensors):
        name = text()
        shape = [number("Q") for _ in range(number("I"))][::-1]
        infos.append((name, shape, number("I"), number("Q")))
    start, expected, arrays = -(-at // 32) * 32, 0, {}
    for name, shape, kind, offset in infos:
        kind, weights, size = TYPES[kind]
        assert offset == expected and name not in arrays and shape[-1] % weights == 0, name
        length = int(np.prod(shape)) // weights * size
        blocks = np.frombuffer(data[start + offset : start + offset + length], "u1").reshape(-1, size)
        arrays[name] = kind, DECODERS[kind](blocks).astype("f4").reshape(shape)
        expected += -(-length // 32) * 32
    assert len(data) == start + expected
    return metadata, arrays


def half(blocks, at):
    return blocks[:, at : at + 2].copy().view("<f2").astype("f4")


def nibbles(packed):
    """The low halves of a run of bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype("f4")


def q4_0(blocks):
    return half(blocks, 0) * (nibbles(blocks[:, 2:]) - 8)


def q5_0(blocks):
    high = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little").astype("f4")
    return half(blocks, 0) * (nibbles(blocks[:, 6:]) + 16 * high - 16)


def q8_0(blocks):
    return half(blocks, 0) * blocks[:, 2:].view("i1").astype("f4")


def k_scales(packed):
    """Eight scales and eight minima of six bits."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=1)
    return scales.astype("f4"), np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=1).astype("f4")


def q4_k(blocks, fifth=None):
    scales, minima = k_scales(blocks[:, 4:16])
    codes = nibbles(blocks[:, -128:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    codes = codes if fifth is None else codes + 16 * fifth
    scales, minima = half(blocks, 0) * scales, half(blocks, 2) * minima
    return scales[:, :, None] * codes - minima[:, :, None]


def q5_k(blocks):
    bits = np.unpackbits(blocks[:, 16:48], axis=1, bitorder="little").reshape(-1, 32, 8)
    return q4_k(blocks, bits.transpose(0, 2, 1).astype("f4"))


def q6_k(blocks):
    low, high = blocks[:, :128].reshape(-1, 2, 2, 32), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)  # of a half, four runs of 32
    high = high >> np.arange(0, 8, 2, dtype="u1").reshape(1, 1, 4, 1) & 3
    codes = (low | high << 4).astype("f4").reshape(-1, 16, 16) - 32
    return half(blocks, 208)[:, :, None] * blocks[:, 192:208].view("i1").astype("f4")[:, :, None] * codes


DECODERS = {
    "F32": lambda blocks: blocks.view("<f4"),
    "F16": lambda blocks: blocks.view("<f2"),
    "BF16": lambda blocks: (blocks.view("<u2").astype("u4") << 16).view("f4"),
    "Q4_0": q4_0, "Q5_0": q5_0, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
