"""pyarrow.flight: tables by path, SQL as text, streams in and out, and actions."""

import json
import threading
import time

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from conftest import ENDLESS, MODEL, STREAMING, eventually, run

SQL = "SELECT tensor, chunk, quantize(weights, 4, 128) AS q FROM {}"


def path(*parts):
    return flight.FlightDescriptor.for_path(*parts)


def command(sql):
    return flight.FlightDescriptor.for_command(sql)


def fetched(client, info):
    return pa.concat_tables(client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints)


def weights(client, where="true"):
    """Chunks of the model, as a table."""
    sql = f"SELECT tensor, chunk, weights FROM dit.weights WHERE {where} ORDER BY tensor, chunk"
    return client.do_get(flight.Ticket(sql)).read_all()


def results(client, name, body=None):
    """What an action answers, parsed."""
    action = flight.Action(name, json.dumps(body or {}).encode())
    return [json.loads(result.body.to_pybytes()) for result in client.do_action(action)]


@pytest.fixture
def client(writable):
    return writable.client()


# ---------------------------------------------------------------- tables


def test_list_flights(client):
    found = {tuple(part.decode() for part in info.descriptor.path): info for info in client.list_flights()}
    assert {("dit", "tensors"), ("dit", "weights")} <= found.keys()
    tensors = found["dit", "tensors"]
    assert tensors.schema.names[:4] == ["model", "component", "tensor", "dtype"]
    assert tensors.total_records in (52, -1)
    assert not any(name[0] == "information_schema" for name in found)


def test_list_flights_by_criteria(client):
    found = [tuple(part.decode() for part in info.descriptor.path) for info in client.list_flights(b"dit.w")]
    assert found == [("dit", "weights")]


def test_models_are_found_however_their_names_are_written(server):
    one = server("--model", f"DiT-2.0={MODEL}").client()
    for name in ("DiT-2.0", "dit-2.0", "DIT-2.0"):
        assert fetched(one, one.get_flight_info(path(name, "tensors"))).num_rows == 52
        assert one.do_get(flight.Ticket(f'SELECT * FROM "{name}".tensors')).read_all().num_rows == 52
    assert fetched(one, one.get_flight_info(path("DIT", "tensors"))).num_rows == 52


def test_get_by_path(client):
    info = client.get_flight_info(path("dit", "weights"))
    table = fetched(client, info)
    assert table.schema == info.schema == client.get_schema(path("dit", "weights")).schema
    assert table.num_rows == 56
    assert len(info.endpoints) > 1
    for endpoint in info.endpoints:
        assert endpoint.locations == []  # this server
        assert endpoint.expiration_time is not None


def test_get_by_sql(client):
    sql = "SELECT tensor, elements FROM dit.tensors WHERE dtype = 'BF16' ORDER BY elements DESC, tensor LIMIT 3"
    info = client.get_flight_info(command(sql))
    assert info.schema.names == ["tensor", "elements"]
    assert client.get_schema(command(sql)).schema == info.schema
    table = fetched(client, info)
    assert table["elements"].to_pylist() == [98304] * 3
    assert client.do_get(flight.Ticket(sql)).read_all() == table


def test_paths_are_names_not_sql(client):
    for parts in (["dit", 'weights"; DROP TABLE x'], ["dit.weights"], ["DIT", "WEIGHTS"], ["nowhere", "at", "all"]):
        with pytest.raises(pa.ArrowInvalid):
            client.get_flight_info(path(*parts))
    with pytest.raises(pa.ArrowInvalid, match="path"):
        client.get_flight_info(path("a", "b", "c", "d"))


def test_the_announced_schema_is_the_streamed_one(client):
    for sql in (
        "SELECT * FROM dit.weights",
        "SELECT arrow_cast('a', 'Dictionary(Int32, Utf8)') AS d, arrow_cast('b', 'Utf8View') AS v, NULL AS n",
        "SELECT [1, 2] AS l, named_struct('a', arrow_cast('x', 'Utf8View')) AS s, map(['k'], [1]) AS m",
        "SELECT DISTINCT dtype, component FROM dit.tensors",
        "SELECT x, CASE WHEN x > 1 THEN x END AS y FROM generate_series(1, 3) AS t(x) UNION ALL SELECT 1, 2",
    ):
        info = client.get_flight_info(command(sql))
        for endpoint in info.endpoints:
            assert client.do_get(endpoint.ticket).schema == info.schema, sql
        assert client.get_schema(command(sql)).schema == info.schema, sql


# ---------------------------------------------------------------- do_put


def put(client, name, table):
    writer, _ = client.do_put(path(name), table.schema)
    with writer:
        writer.write_table(table)


def test_put_and_query(client):
    table = pa.table({"tensor": ["proj_out.weight", "pos_embed"], "bits": [8, 4]})
    put(client, "widths", table)
    assert fetched(client, client.get_flight_info(path("widths"))) == table
    sql = "SELECT tensor, bits FROM dit.tensors JOIN widths USING (tensor) ORDER BY tensor"
    assert client.do_get(flight.Ticket(sql)).read_all()["bits"].to_pylist() == [4, 8]


def test_put_replaces(client):
    put(client, "twice", pa.table({"a": [1, 2]}))
    put(client, "twice", pa.table({"b": ["x"]}))
    assert fetched(client, client.get_flight_info(path("twice"))) == pa.table({"b": ["x"]})


def test_put_of_dictionaries_and_views(client):
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    put(
        client,
        "words",
        pa.table({"d": words, "v": pa.array(["x", None, "a text of more than 12 bytes"], pa.string_view())}),
    )
    table = fetched(client, client.get_flight_info(path("words")))
    assert table.to_pydict() == {"d": ["a", "b", "a"], "v": ["x", None, "a text of more than 12 bytes"]}


def test_one_large_batch_is_one_message(client):
    # pyarrow does not split what it sends: more than gRPC's default of 4 MiB.
    put(client, "large", pa.table({"x": pa.array(range(2_000_000), pa.int64())}))
    table = client.do_get(flight.Ticket("SELECT count(*) AS n, sum(x) AS s FROM large")).read_all()
    assert table.to_pylist() == [{"n": 2_000_000, "s": 1_999_999_000_000}]


def test_put_to_a_model_is_refused(client):
    with pytest.raises(pa.ArrowException):
        writer, _ = client.do_put(path("dit", "tensors"), pa.schema({"x": pa.int64()}))
        writer.write_batch(pa.record_batch({"x": [1]}))
        writer.close()


# ---------------------------------------------------------------- do_exchange


def exchanged(client, sql, batches):
    """The result of a query over batches, written before and while it is read."""
    writer, reader = client.do_exchange(command(sql))
    failure = []

    def write():
        try:
            writer.begin(batches[0].schema)
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return reader.read_all()
    finally:
        thread.join()
        writer.close()


def test_exchange_quantizes_as_sql_does(client):
    table = weights(client)
    result = exchanged(client, SQL.format("input"), table.to_batches(max_chunksize=4))
    expected = client.do_get(flight.Ticket(SQL.format("dit.weights"))).read_all()
    order = [("tensor", "ascending"), ("chunk", "ascending")]
    assert result.num_rows == 56
    assert result.drop_columns("q").sort_by(order) == expected.drop_columns("q").sort_by(order)
    codes = lambda table: {(row["tensor"], row["chunk"]): row["q"] for row in table.to_pylist()}
    assert codes(result) == codes(expected)


def test_exchange_gives_the_codes_of_the_command(client):
    sql = "SELECT tensor, get_field(quantize(weights, 4, 128), 'codes') AS codes FROM {} WHERE tensor LIKE 'blocks.0.%'"
    result = exchanged(client, sql.format("input"), weights(client).to_batches(max_chunksize=10))
    done = run("sql", "--format", "json", "--model", f"dit={MODEL}", sql.format("dit.weights"))
    assert done.returncode == 0, done.stderr
    expected = sorted((row["tensor"], row["codes"]) for row in map(json.loads, done.stdout.splitlines()))
    assert len(expected) == 11
    assert sorted((row["tensor"], row["codes"].hex()) for row in result.to_pylist()) == expected


def test_exchange_with_a_limit_ends_cleanly(client):
    batch = pa.record_batch({"x": pa.array(range(10_000), pa.int64())})
    writer, reader = client.do_exchange(command("SELECT x FROM input LIMIT 3"))
    writer.begin(batch.schema)
    for _ in range(200):
        writer.write_batch(batch)
    writer.done_writing()
    assert reader.read_all()["x"].to_pylist() == [0, 1, 2]
    writer.close()


def test_exchange_answers_while_the_client_writes(client):
    batches = [weights(client, "tensor = 'time_fc1.weight'").to_batches()[0]] * 40
    writer, reader = client.do_exchange(command("SELECT tensor, quantize(weights, 4, 128) AS q FROM input"))
    writer.begin(batches[0].schema)
    seen = 0
    for sent, batch in enumerate(batches, 1):
        writer.write_batch(batch)
        if sent > 8:
            # At most a few batches are under way.
            seen += reader.read_chunk().data.num_rows
    assert seen == 32
    writer.done_writing()
    assert seen + reader.read_all().num_rows == 40
    writer.close()


def test_exchange_holds_back_a_client_that_does_not_read(writable):
    """What the client has written and the server not answered is bounded: the writer waits."""
    client = writable.client()
    batch = pa.record_batch({"x": pa.array(range(1 << 17), pa.int64())})  # 1 MiB
    writer, reader = client.do_exchange(command("SELECT x FROM input"))
    writer.begin(batch.schema)
    total, written = 200, [time.monotonic()]

    def write():
        for _ in range(total):
            writer.write_batch(batch)
            written.append(time.monotonic())
        writer.done_writing()

    thread = threading.Thread(target=write)
    thread.start()
    eventually(lambda: time.monotonic() - written[-1] > 0.3, "the writer's waiting")
    assert len(written) < total / 2
    rows = sum(chunk.data.num_rows for chunk in reader)
    thread.join()
    writer.close()
    assert rows == total * (1 << 17)


def test_exchange_joins_tables(client):
    put(client, "chosen", pa.table({"tensor": ["pos_embed", "proj_out.weight"], "bits": [2, 8]}))
    result = exchanged(
        client,
        "SELECT i.tensor, get_field(quantize(i.weights, c.bits, 64), 'bits') AS bits"
        " FROM input i JOIN chosen c ON i.tensor = c.tensor ORDER BY 1",
        weights(client).to_batches(max_chunksize=8),
    )
    assert result.to_pydict() == {"tensor": ["pos_embed", "proj_out.weight"], "bits": [2, 8]}


def test_exchange_of_lists_of_floats(client):
    table = pa.table(
        {"tensor": ["a"] * 3, "weights": pa.array([[float(i) for i in range(256)]] * 3, pa.list_(pa.float32()))}
    )
    sql = "SELECT tensor, sqnr(weights, dequantize(quantize(weights, 8, 64))) AS db FROM input"
    result = exchanged(client, sql, table.to_batches(max_chunksize=1))
    assert result.num_rows == 3 and min(result["db"].to_pylist()) > 40


def test_exchange_refuses_what_is_not_a_query(client):
    batches = pa.table({"x": [1]}).to_batches()
    for sql in ("CREATE TABLE kept AS SELECT * FROM input", "SELECT * FROM nowhere", "SELECT y FROM input", "SELEC"):
        with pytest.raises(pa.ArrowInvalid):
            exchanged(client, sql, batches)
    with pytest.raises(pa.ArrowInvalid, match="once"):
        exchanged(client, "SELECT * FROM input a JOIN input b ON a.x = b.x", batches)


def test_an_error_in_the_middle_of_an_exchange(client):
    batches = [pa.record_batch({"weights": pa.array([[x] * 64], pa.list_(pa.float32()))}) for x in (1.0, float("nan"))]
    with pytest.raises(pa.ArrowInvalid, match="(?i)nan"):
        exchanged(client, "SELECT quantize(weights, 4, 64) AS q FROM input", batches)


# ---------------------------------------------------------------- streams that end early


def test_cancelling_a_stream_stops_the_query(writable, client):
    reader = client.do_get(flight.Ticket(STREAMING))
    assert reader.read_chunk().data.num_rows > 0
    reader.cancel()
    with pytest.raises(flight.FlightCancelledError):
        while True:
            reader.read_chunk()
    writable.idle()


def test_a_reader_that_is_slow_gets_everything(client):
    reader = client.do_get(flight.Ticket("SELECT x, repeat('x', 2000) AS t FROM generate_series(1, 20000) AS t(x)"))
    total = 0
    for chunk in reader:
        total += chunk.data.num_rows
    assert total == 20_000


def test_cancel_flight_info(writable, client):
    info = client.get_flight_info(command(STREAMING))
    reader = client.do_get(info.endpoints[0].ticket)
    reader.read_chunk()
    (status,) = client.do_action(flight.Action("CancelFlightInfo", b"\x0a" + varint_bytes(info.serialize())))
    assert status.body.to_pybytes() == b"\x08\x01"  # cancelled
    with pytest.raises(flight.FlightCancelledError, match="cancelled"):
        while True:
            reader.read_chunk()
    with pytest.raises(pa.ArrowKeyError, match="no such result"):
        client.do_get(info.endpoints[0].ticket).read_all()
    writable.idle()


def varint_bytes(data):
    from wire import varint

    return varint(len(data)) + data


# ---------------------------------------------------------------- actions


def test_list_actions(client):
    names = {action.type for action in client.list_actions()}
    assert names >= {"list_models", "add_model", "quantize_model", "validate_model", "cancel"}
    assert names >= {"CancelFlightInfo", "CloseSession", "SetSessionOptions", "CreatePreparedStatement"}
    assert all(action.description for action in client.list_actions())


def test_list_models(client):
    (dit,) = [model for model in results(client, "list_models") if model["name"] == "dit"]
    assert dit["tensors"] == 52
    assert 2_500_000 < dit["bytes"] < 2_600_000


def test_add_model(client):
    results(client, "add_model", {"name": "again", "path": str(MODEL)})
    assert "again" in {model["name"] for model in results(client, "list_models")}
    table = client.do_get(flight.Ticket("SELECT count(*) AS n FROM again.tensors")).read_all()
    assert table.to_pylist() == [{"n": 52}]


def test_actions_that_cannot_be_done(client, allowed):
    for name, body, says in (
        ("add_model", {"name": "x"}, "path"),
        ("add_model", {"name": "x", "path": str(MODEL), "more": 1}, "more"),
        ("add_model", {"name": "no name", "path": str(MODEL)}, "no name"),
        ("quantize_model", {"model": "nothing", "output": str(allowed / "never")}, "nothing"),
        ("quantize_model", {"model": "dit", "output": str(allowed / "never"), "config": {"bit_width": 7}}, "bit_width"),
        ("quantize_model", {"model": "dit", "output": str(allowed / "never"), "config": {"bit": 4}}, "bit"),
        ("validate_model", {"original": "dit"}, "quantized"),
        ("cancel", {}, "id"),
    ):
        with pytest.raises((pa.ArrowException, flight.FlightError), match=says):
            results(client, name, body)
    with pytest.raises(pa.ArrowNotImplementedError, match="no_such_action.*list_models"):
        results(client, "no_such_action")
    assert not (allowed / "never").exists()


def test_quantize_and_validate_a_model(client, allowed):
    out = allowed / "dit-int4"
    config = {"bit_width": 4, "group_size": 128}
    first, *progress, last = results(
        client, "quantize_model", {"model": "dit", "output": str(out), "config": config, "name": "int4"}
    )
    assert set(first) == {"id"}
    steps = {}
    for message in progress:
        steps.setdefault(message["progress"]["stage"], []).append(message["progress"])
    for step in steps.values():
        done = [message["done"] for message in step]
        assert done == sorted(done) and done[-1] <= step[-1]["total"]
    assert steps and last["result"]["model"] == "dit" and last["result"]["output"] == str(out)
    # It is a model of this server now, and for the command.
    table = client.do_get(
        flight.Ticket("SELECT DISTINCT get_field(quantized, 'bits') AS bits FROM int4.quantized")
    ).read_all()
    assert 4 in table["bits"].to_pylist()
    done = run("validate", "--json", MODEL, out)
    assert done.returncode == 0, done.stderr
    first, *progress, last = results(client, "validate_model", {"original": "dit", "quantized": "int4"})
    assert set(first) == {"id"} and last["result"]
    by_path = results(client, "validate_model", {"original": str(MODEL), "quantized": str(out)})
    assert by_path[-1]["result"]
    # What is there is not written over.
    with pytest.raises((pa.ArrowException, flight.FlightError), match="dit-int4"):
        results(client, "quantize_model", {"model": "dit", "output": str(out), "config": config})


def test_cancel_an_action(writable, client, allowed):
    out = allowed / "cancelled"
    stream = client.do_action(
        flight.Action("quantize_model", json.dumps({"model": "dit", "output": str(out)}).encode())
    )
    job = json.loads(next(stream).body.to_pybytes())["id"]
    assert results(writable.client(), "cancel", {"id": job}) == [{"cancelled": True}]
    with pytest.raises((flight.FlightCancelledError, pa.ArrowCancelled)):
        for _ in stream:
            pass
    writable.idle()
    assert not (out / "arrow_quant.json").exists()
    eventually(lambda: results(client, "cancel", {"id": job}) == [{"cancelled": False}])


def test_cancel_of_an_unknown_action(client):
    assert results(client, "cancel", {"id": "00000000-0000-0000-0000-000000000000"}) == [{"cancelled": False}]


def test_authenticate_without_credentials_is_harmless(writable):
    client = writable.client()
    header = client.authenticate_basic_token("anyone", "anything")
    assert header[0] == b"authorization" and header[1].startswith(b"Bearer ")
    options = flight.FlightCallOptions(headers=[header])
    assert client.do_get(flight.Ticket("SELECT 1 AS x"), options).read_all().to_pylist() == [{"x": 1}]


def test_client_timeout_stops_the_query(writable, client):
    with pytest.raises(flight.FlightTimedOutError):
        client.do_get(flight.Ticket(ENDLESS), flight.FlightCallOptions(timeout=0.3)).read_all()
    writable.idle()
