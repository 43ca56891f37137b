"""Files of models that change under a server, or under the command, which must both outlive it and say which file it was."""

import json

import pytest

from conftest import run, sparse_model
from wire import refusal

STATISTICS = "SELECT tensor_stats(weights)['n'] FROM m.weights"


def cut(path):
    with path.open("r+b") as file:
        file.truncate(100_000)


@pytest.fixture
def quantized(tmp_path):
    """A quantized model of one part."""
    model = sparse_model(tmp_path / "m.safetensors", [1024, 1024])
    done = run("quantize", model, tmp_path / "m-int4", "--bits", "4")
    assert done.returncode == 0, done.stderr
    [part] = (tmp_path / "m-int4" / "weights").glob("*.parquet")
    return tmp_path / "m-int4", part


def test_a_model_that_is_cut_ends_queries_and_not_the_server(server, tmp_path):
    path = sparse_model(tmp_path / "m.safetensors", [1024, 1024])
    calls = server("--model", f"m={path}").raw()
    assert list(calls.query(STATISTICS))
    cut(path)
    for _ in range(3):
        code, details = refusal(calls.query, STATISTICS)
        assert code == "FAILED_PRECONDITION", details
        assert "m.safetensors: it had" in details and "has 100000" in details
        # Of whom nothing else is to be known: where it lies.
        assert str(tmp_path) not in details
        assert list(calls.query("SELECT 1"))


def test_a_part_that_is_cut_ends_queries_and_not_the_server(server, quantized):
    directory, part = quantized
    calls = server("--model", f"m={directory}").raw()
    sql = "SELECT sqnr_agg(quantized) FROM m.quantized"
    assert list(calls.query(sql))
    part.write_bytes(part.read_bytes()[:-1000])
    for _ in range(3):
        code, details = refusal(calls.query, sql)
        assert code == "INVALID_ARGUMENT" and part.name in details, (code, details)
        assert list(calls.query("SELECT 1"))


def test_the_command_names_a_part_that_is_cut(quantized, tmp_path):
    directory, part = quantized
    part.write_bytes(part.read_bytes()[:-1000])
    for arguments in (
        ["validate", tmp_path / "m.safetensors", directory],
        ["sql", "--model", f"m={directory}", "SELECT sqnr_agg(quantized) FROM m.quantized"],
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and part.name in done.stderr, done.stderr
    done = run("validate", tmp_path / "m.safetensors", directory, "--json")
    assert part.name in json.loads(done.stderr.splitlines()[-1])["error"]["message"]
