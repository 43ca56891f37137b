#!/usr/bin/env python3
"""What a calibration gains on a diffusion model that is run: time groups, smoothing, importance, samples.

    diffusion.py COMMAND MODEL [PICTURE]

COMMAND is arrow-quant; MODEL is tests/data/digits-dit, whose evaluate.py runs the model and measures it. Prints tables in
Markdown, and draws samples of the original, of INT4 and of INT2 in PICTURE, a PNG. Needs numpy, pyarrow, safetensors and
scikit-learn.
"""

import importlib.util
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import print_table

# The synthetic drift: normal inputs of one channel, whose deviation grows by DRIFT from the first step to the last.
DRIFT, STEPS, SAMPLES, BINS = 8, 100, 2048, 2048
GROUPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
DRAWS = 3

TIMESTEPS = (0, 200, 400, 600, 800, 960)
QUALITY = ["worst dB", "mean dB", *(f"t={t}" for t in TIMESTEPS)]

KEEP_ALL = ("--sensitive-layer-patterns", ".*")
EDGES = ("patch_embed", "proj_out", "pos_embed", "label_embed")
KEPT_EDGES = ("--sensitive-layer-names", ",".join(EDGES))
NO_SMOOTHING = ("--enable-spatial=false",)
UNBIASED = ("--method", "unbiased")

# What every step of a sample goes through, and is small: 2.6 % and 2.6 % of the weights.
CONDITIONING = ("time_fc1", "time_fc2", "final_modulation")
INT8_CONDITIONING = tuple(flag for name in CONDITIONING for flag in ("--layer-bit-widths", f"{name}=8"))

# Where other images are looked at: at the first timestep, and halfway between those of the calibration or near it.
ELSEWHERE, IMAGES = (0, 5, 10, 20, 30, 60, 100, 220, 380, 540, 740, 900), 64

# Copies of the model whose weights are off by as much of their deviation.
COPIES, NOISE = 8, 0.05

# The first is that of the samples that are compared and drawn.
SEEDS = (0, 1, 2, 3, 4)


class Engine:
    """The command, one model, and a directory for what is made of it."""

    def __init__(self, command, model, directory):
        self.command, self.model, self.directory, self.made = command, Path(model), Path(directory), 0

    def path(self, suffix=""):
        self.made += 1
        return self.directory / f"{self.made}{suffix}"

    def run(self, *arguments):
        done = subprocess.run([self.command, *map(str, arguments)], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: status {done.returncode}\n{done.stderr}")
        return done.stdout

    def rows(self, query, *arguments):
        return [json.loads(line) for line in self.run("sql", *arguments, "--format", "json", query).splitlines()]

    def quantize(self, bits, *flags, calibrated=True, group_size=64):
        """Gives the quantized model and its report, whatever the error."""
        out = self.path()
        calibration = ("--calibration", self.model / "calibration.parquet") if calibrated else ()
        settings = ("--bits", bits, "--group-size", group_size, "--min-accuracy", 0)
        return out, json.loads(self.run("quantize", self.model, out, *settings, *calibration, *flags, "--json"))

    def weights(self, out, smoothed=True):
        """The weights of a quantized model as evaluate.py reads them; `smoothed` for inputs that are smoothed."""
        restored, factors = "to_floats(w.weights)", ""
        if smoothed and (out / "smoothing.parquet").exists():
            restored = f"coalesce(to_floats(scale_channels(w.weights, s.smooth)), {restored})"
            factors = "LEFT JOIN m.smoothing s ON s.tensor = w.tensor"
        path = self.path(".parquet")
        query = f"COPY (SELECT w.tensor, w.chunk, w.shape, {restored} AS weights FROM m.weights w {factors}) TO '{path}'"
        self.run("sql", "--model", f"m={out}", query)
        shapes, chunks = {}, {}
        for row in sorted(pq.read_table(path).to_pylist(), key=lambda row: row["chunk"]):
            shapes[row["tensor"]] = row["shape"]
            chunks.setdefault(row["tensor"], []).append(np.array(row["weights"], np.float32))
        arrays = {name: np.concatenate(chunks[name]).reshape(shape) for name, shape in shapes.items()}
        path = self.path(".npz")
        np.savez(path, **arrays)
        return path

    def activations(self, out):
        """The parameters of a quantized model's inputs as evaluate.py reads them."""
        smooth, factors = "NULL AS smooth", ""
        if (out / "smoothing.parquet").exists():
            smooth, factors = "s.smooth", "LEFT JOIN m.smoothing s ON s.tensor = a.tensor"
        path = self.path(".parquet")
        columns = f"a.tensor, t_start, t_end, bits, scale, zero_point, {smooth}"
        self.run("sql", "--model", f"m={out}", f"COPY (SELECT {columns} FROM m.activations a {factors}) TO '{path}'")
        return path

    def evaluate(self, weights, activations=None):
        """What evaluate.py says of weights: SQNR of the predicted noise: worst, mean, and at each timestep."""
        command = [sys.executable, self.model / "evaluate.py", weights, "--no-sampling"]
        command += ["--activations", activations] if activations else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        by_timestep = [found["by_timestep"][str(t)] for t in TIMESTEPS]
        return [found["noise_sqnr_db_worst"], found["noise_sqnr_db_mean"], *by_timestep]


def bits_per_weight(out, report):
    """Of the files of weights: what activations take beside them is the same for any model of as many layers."""
    return 8 * sum(path.stat().st_size for path in (out / "weights").iterdir()) / report["weights"]


def imported(directory):
    """evaluate.py as a module; nothing is written beside it."""
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("evaluate", directory / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def running(module, weights, table=None):
    """The model of evaluate.py with these weights and parameters of activations."""
    parameters = {}
    for row in pq.read_table(table).to_pylist() if table else ():
        smooth = None if row.get("smooth") is None else np.array(row["smooth"], np.float32)
        values = row["t_start"], row["t_end"], row["bits"], row["scale"], row["zero_point"], smooth
        parameters.setdefault(row["tensor"], []).append(values)
    return module.DiT(module.load(weights), parameters)


def decibels(values):
    return [f"{value:.2f}" for value in values]


def gains(values, over):
    return [f"{value - other:+.2f}" for value, other in zip(values, over, strict=True)]


# A range that drifts


def drifting(seed):
    """Inputs at each step, and their calibration table with histograms of one grid."""
    random = np.random.default_rng(seed)
    deviations = DRIFT ** (np.arange(STEPS) / (STEPS - 1))
    inputs = [(deviation * random.standard_normal(SAMPLES)).astype(np.float32) for deviation in deviations]
    # A little wider than the greatest value, so that no rounding leaves it out of the last bin.
    bound = np.float32(1.0001 * max(np.abs(values).max() for values in inputs))
    edges = np.linspace(-bound, bound, BINS + 1)
    columns = {
        "tensor": ["layer.weight"] * STEPS,
        "timestep": range(STEPS),
        "samples": [SAMPLES] * STEPS,
        "channel_min": [[values.min()] for values in inputs],
        "channel_max": [[values.max()] for values in inputs],
        "channel_mean_square": [[np.square(values).mean()] for values in inputs],
        "histogram": [np.histogram(values, edges)[0].astype(float) for values in inputs],
        "histogram_min": np.full(STEPS, -bound),
        "histogram_max": np.full(STEPS, bound),
    }
    return inputs, pa.table(columns)


def dequantized(values, group):
    code = np.clip(np.round(values / group["scale"]) + group["zero_point"], 0, 2 ** group["bits"] - 1)
    return group["scale"] * (code - group["zero_point"])


def measured(inputs, groups):
    """SQNR in dB at each step, of inputs that are quantized with the parameters of the group that has it."""
    found = []
    for t, values in enumerate(inputs):
        [group] = [group for group in groups if group["t_start"] <= t < group["t_end"]]
        noise = np.square(values - dequantized(values, group)).sum()
        found.append(10 * math.log10(np.square(values).sum() / noise))
    return found


def drift(engine):
    draws = []
    for seed in range(DRAWS):
        inputs, table = drifting(seed)
        path = engine.path(".parquet")
        pq.write_table(table, path)
        found = {}
        for count in GROUPS if seed == 0 else (1, 10):
            for boundaries in ("equal", "optimal"):
                groups = engine.rows(f"SELECT * FROM time_groups('{path}', {count}, '{boundaries}')")
                quality = measured(inputs, groups)
                found[count, boundaries] = len(groups), np.mean(quality), min(quality)
        draws.append(found)
    print(f"Inputs whose deviation grows {DRIFT} × over {STEPS} steps, {SAMPLES} at each, quantized to 8 bits")
    print()
    rows = []
    for count in GROUPS:
        used, *optimal = draws[0][count, "optimal"]
        _, *equal = draws[0][count, "equal"]
        rows.append([count, used, *decibels(optimal), *decibels(equal), *gains(optimal, equal)])
    columns = ["optimal: used", "mean dB", "worst dB", "equal: mean dB", "worst dB", "optimal − equal: mean", "worst"]
    print_table(["groups", *columns], rows)
    rows = []
    for seed, found in enumerate(draws):
        (_, *one), (_, *ten) = (found[count, "optimal"] for count in (1, 10))
        rows.append([seed, *gains(ten, one)])
    print_table(["seed", "10 groups over 1: mean dB", "worst dB"], rows)


# Activations


def plain_groups(engine, count):
    """Parameters by minimum and maximum of as long a span of timesteps each, to compare with; and the groups of a layer."""
    found = {}
    for row in pq.read_table(engine.model / "calibration.parquet").to_pylist():
        low, high = found.get((row["tensor"], row["timestep"] * count // 1000), (0.0, 0.0))
        bounds = min(low, *row["channel_min"]), max(high, *row["channel_max"])
        found[row["tensor"], row["timestep"] * count // 1000] = bounds
    rows = []
    for (tensor, group), (low, high) in found.items():
        scale = (high - low) / 255 or 1.0
        span = {"t_start": group * 1000 // count, "t_end": (group + 1) * 1000 // count}
        rows.append({"tensor": tensor, **span, "bits": 8, "scale": scale, "zero_point": round(-low / scale)})
    path = engine.path(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path, len(rows) / len({tensor for tensor, _ in found})


def mean_groups(report):
    return np.mean([layer["time_groups"] for layer in report["layers"]])


def activations(engine):
    rows, tables = [], {}
    original = engine.model / "model.safetensors"
    for count in (1, 5, 10, 20):
        table, used = plain_groups(engine, count)
        tables["minimum and maximum, equal", count] = original, table
        rows.append(["minimum and maximum, equal", count, f"{used:.1f}", *decibels(engine.evaluate(original, table))])
    ways = {
        "equal": ((10,), (*NO_SMOOTHING, "--time-group-boundaries", "equal")),
        "optimal": ((1, 5, 10, 20), NO_SMOOTHING),
        "optimal, smoothed": ((1, 5, 10, 20), ()),
    }
    for way, (counts, flags) in ways.items():
        for count in counts:
            out, report = engine.quantize(8, *KEEP_ALL, *flags, "--num-time-groups", count)
            tables[way, count] = engine.weights(out), engine.activations(out)
            quality = engine.evaluate(*tables[way, count])
            rows.append([way, count, f"{mean_groups(report):.1f}", *decibels(quality)])
    print("Activations of 8 bits, the original's weights")
    print()
    print_table(["parameters", "groups", "used", *QUALITY], rows)
    return tables


def elsewhere(engine, module, tables):
    """The same on other images, at timesteps that the calibration has not, but for the first."""
    from sklearn.datasets import load_digits

    digits, random = load_digits(), np.random.default_rng(7)
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    original = running(module, engine.model / "model.safetensors")
    models = {key: running(module, *both) for key, both in tables.items() if key[1] in (1, 10)}
    found = {key: [] for key in models}
    for t in ELSEWHERE:
        chosen = random.integers(0, len(digits.images), IMAGES)
        images, noise = digits.images[chosen] / 8 - 1, random.standard_normal((IMAGES, 8, 8))
        noisy = (math.sqrt(signal[t]) * images + math.sqrt(1 - signal[t]) * noise).astype(np.float32)
        output = original(noisy, t, digits.target[chosen])
        for key, model in models.items():
            error = np.square(output - model(noisy, t, digits.target[chosen])).sum()
            found[key].append(10 * math.log10(np.square(output).sum() / error))
    print(f"The same on {IMAGES} other noised images at each of other timesteps, of which the calibration has t=0 alone")
    print()
    rows = [[*key, *decibels([min(values), np.mean(values), *values])] for key, values in found.items()]
    print_table(["parameters", "groups", *QUALITY[:2], *(f"t={t}" for t in ELSEWHERE)], rows)


def together(engine):
    plain, _ = engine.quantize(4, calibrated=False)
    plain = engine.weights(plain)
    rows = []
    for way, flags in {"plain": None, "importance": NO_SMOOTHING, "importance, smoothed": ()}.items():
        for count in (1, 10):
            groups = ("--num-time-groups", count)
            out, report = engine.quantize(4, *(NO_SMOOTHING if flags is None else flags), *groups)
            weights = plain if flags is None else engine.weights(out)
            quality = engine.evaluate(weights, engine.activations(out))
            rows.append([way, count, f"{mean_groups(report):.1f}", *decibels(quality)])
    print("Weights INT4 g64 and activations of 8 bits")
    print()
    print_table(["weights", "groups", "used", *QUALITY], rows)


# Weights

KEPT = {"none": (), "edges": KEPT_EDGES}


def by_weights(engine, bits, kept, calibrated=True, flags=NO_SMOOTHING):
    """SQNR of the model with quantized weights, and their size."""
    out, report = engine.quantize(bits, *kept, *(flags if calibrated else ()), calibrated=calibrated)
    return bits_per_weight(out, report), engine.evaluate(engine.weights(out, smoothed=False))


def importance(engine):
    rows = []
    for bits in (4, 2):
        for name, kept in KEPT.items():
            ways = {
                "plain": (False, ()),
                "importance": (True, NO_SMOOTHING),
                "importance, unbiased": (True, (*NO_SMOOTHING, *UNBIASED)),
                "importance, smoothed, unbiased": (True, UNBIASED),
            }
            for way, (calibrated, flags) in ways.items():
                size, quality = by_weights(engine, bits, kept, calibrated, flags)
                rows.append([f"INT{bits} g64", name, way, f"{size:.3f}", *decibels(quality)])
    print("Weights alone; kept: none, or the edges, which are patch_embed, proj_out, pos_embed and label_embed")
    print()
    print_table(["weights", "kept", "way", "bits per weight", *QUALITY], rows)


def copy(engine, model, seed):
    """Writes a copy of the model that is off a little, with its own recorded outputs and the same calibration."""
    from safetensors.numpy import save_file

    directory = engine.path()
    directory.mkdir()
    for name in ("config.json", "calibration.parquet", "evaluate.py"):
        shutil.copyfile(engine.model / name, directory / name)
    random = np.random.default_rng(seed)
    weights = model.load(engine.model / "model.safetensors")
    for name, array in weights.items():
        if array.ndim > 1:
            noise = NOISE * array.std() * random.uniform(-1, 1, array.shape)
            weights[name] = (array + noise).astype(np.float32)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt", "modality": "image"})
    original, recorded = model.DiT(weights), dict(np.load(engine.model / "reference.npz"))
    for t in TIMESTEPS:
        recorded[f"out_{t}"] = original(recorded[f"x_{t}"], t, recorded[f"y_{t}"])
    np.savez(directory / "reference.npz", **recorded)
    return directory


def copies(engine, model):
    """Gains of importance on copies, where those of one model alone could be luck."""
    ways = {"importance": NO_SMOOTHING, "importance, unbiased": (*NO_SMOOTHING, *UNBIASED)}
    gained = {(bits, name, way): [] for bits in (4, 2) for name in KEPT for way in ways}
    for seed in range(1, COPIES + 1):
        copied = Engine(engine.command, copy(engine, model, seed), engine.path())
        copied.directory.mkdir()
        plain = {(bits, name): by_weights(copied, bits, KEPT[name], calibrated=False)[1] for bits, name, _ in gained}
        for (bits, name, way), found in gained.items():
            _, weighted = by_weights(copied, bits, KEPT[name], flags=ways[way])
            found.append(np.subtract(weighted, plain[bits, name]))
        shutil.rmtree(copied.directory)
    rows = []
    for (bits, name, way), found in gained.items():
        mean = np.mean(found, 0)
        error = np.std(found, 0, ddof=1) / math.sqrt(COPIES)
        cells = [f"{a:+.2f} ± {b:.2f}" for a, b in zip(mean, error, strict=True)]
        rows.append([f"INT{bits} g64", name, way, *cells, sum(gain[1] > 0 for gain in found)])
    print(
        f"What is gained over plain weights on {COPIES} copies of the model, each weight of which is off by at most {NOISE:.0%}"
    )
    print("of its tensor's deviation: mean ± its standard error. The calibration is that of the model itself.")
    print()
    print_table(["weights", "kept", "way", *QUALITY, "copies with a better mean"], rows)


# Samples


def drawn(job):
    """Samples of a model with these weights and activations."""
    directory, weights, table, seed = job
    module = imported(directory)
    return module.sample(running(module, weights, table), seed=seed)


def png(path, pixels):
    """Writes an image in shades of grey."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b""))


def picture(path, samples):
    """Draws a hundred of each, side by side: a column for each digit."""
    # Two pixels of ground between digits, four of white between grids.
    framed = [np.pad(many[:100], ((0, 0), (1, 1), (1, 1)), constant_values=-1) for many in samples]
    grids = [many.reshape(10, 10, 10, 10).transpose(0, 2, 1, 3).reshape(100, 100) for many in framed]
    gap = np.ones((100, 4))
    whole = np.concatenate([part for grid in grids for part in (grid, gap)][:-1], 1)
    shades = ((np.clip(whole, -1, 1) + 1) * 127.5).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    png(path, shades.repeat(3, 0).repeat(3, 1))


def samples(engine, model, path):
    from sklearn.datasets import load_digits

    original = "original"
    kept = "INT4 g64, all of it, edges kept"
    best = "the same, time_fc1, time_fc2 and final_modulation INT8"
    fine = "the same in groups of 32"
    coarse = "INT2 g64, all of it, edges kept"
    ways = {
        "INT8 g64": (8, 64, (), False),
        "INT4 g64": (4, 64, (), False),
        "INT4 g64, edges kept": (4, 64, KEPT_EDGES, False),
        "INT4 g64, importance, edges kept": (4, 64, (*KEPT_EDGES, *NO_SMOOTHING), True),
        "INT4 g64, importance, unbiased, edges kept": (4, 64, (*KEPT_EDGES, *NO_SMOOTHING, *UNBIASED), True),
        kept: (4, 64, (*KEPT_EDGES, *UNBIASED), True),
        best: (4, 64, (*KEPT_EDGES, *UNBIASED, *INT8_CONDITIONING), True),
        fine: (4, 32, (*KEPT_EDGES, *UNBIASED, *INT8_CONDITIONING), True),
        coarse: (2, 64, (*KEPT_EDGES, *UNBIASED), True),
    }
    jobs = {(original, seed): (engine.model, engine.model / "model.safetensors", None, seed) for seed in SEEDS}
    sizes = {original: 16}
    for name, (bits, group_size, flags, calibrated) in ways.items():
        out, report = engine.quantize(bits, *flags, calibrated=calibrated, group_size=group_size)
        sizes[name] = bits_per_weight(out, report)
        weights = engine.weights(out, smoothed=False)
        for seed in SEEDS if name == best else SEEDS[:1]:
            jobs[name, seed] = engine.model, weights, None, seed
        if name == best:
            both = f"{name}, activations of 8 bits"
            sizes[both] = sizes[name]
            jobs[both, SEEDS[0]] = engine.model, engine.weights(out), engine.activations(out), SEEDS[0]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(jobs, pool.map(drawn, jobs.values()), strict=True))
    if path is not None:
        picture(path, [found[name, SEEDS[0]] for name in (original, best, coarse)])
    digits = load_digits().images / 8.0 - 1.0
    distances = {key: model.frechet(many, digits) for key, many in found.items()}
    rows = []
    for name, size in sizes.items():
        cells = [f"{distances[name, seed]:.3f}" if (name, seed) in distances else "" for seed in SEEDS]
        ratios = [distances[name, seed] / distances[original, seed] for seed in SEEDS if (name, seed) in distances]
        rows.append([name, f"{size:.3f}", *cells, f"{np.mean(ratios):.3f}"])
    print("Fréchet distance in pixel space between 500 samples (50 DDIM steps) and the digits the model was trained with;")
    print("all of it: importance, smoothed, unbiased")
    print()
    print_table(["weights", "bits per weight", *(f"seed {seed}" for seed in SEEDS), "÷ original"], rows)


def main(command, model, path=None):
    with tempfile.TemporaryDirectory() as directory:
        engine = Engine(command, model, directory)
        module = imported(engine.model)
        drift(engine)
        elsewhere(engine, module, activations(engine))
        together(engine)
        importance(engine)
        copies(engine, module)
        samples(engine, module, None if path is None else Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
