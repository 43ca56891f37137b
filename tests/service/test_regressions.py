"""Ways in which a server was once wrong."""

import hashlib

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from conftest import STREAMING, eventually
from wire import action, by_command, by_path, flight_data, ipc_messages, packed, refusal, statement


def most_resident(one):
    """The most memory a server had so far, in MB."""
    with open(f"/proc/{one.process.pid}/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1000


def test_a_client_that_takes_nothing_keeps_no_place(server):
    one = server("--limit", "query_timeout=0.5", "--limit", "concurrent_queries=1", "--limit", "queue_timeout=20")
    # Rows that fill what the client's side takes without being asked.
    stalled = one.client().do_get(flight.Ticket("SELECT repeat('x', 1000000) AS t FROM generate_series(1, 100000) AS t(x)"))
    stalled.read_chunk()
    assert one.client().do_get(flight.Ticket("SELECT 1 AS x")).read_all().to_pylist() == [{"x": 1}]
    with pytest.raises(flight.FlightTimedOutError, match="query_timeout"):
        while True:
            stalled.read_chunk()


def test_an_update_that_is_a_query_holds_no_rows(server):
    one = server("--limit", "memory_mb=50")
    with one.connect() as connection, connection.cursor() as cursor:
        statement_ = cursor.adbc_statement
        statement_.set_sql_query("SELECT repeat('x', 100000) FROM generate_series(1, 3000)")
        assert statement_.execute_update() == -1
    assert most_resident(one) < 250, "300 MB of rows were not held"


def test_a_prepared_statement_means_the_table_there_is_now(writable):
    with writable.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("prepared_into", pa.table({"x": [1]}))
        cursor.adbc_prepare("INSERT INTO prepared_into VALUES ($1)")
        with connection.cursor() as other:
            other.adbc_ingest("prepared_into", pa.table({"x": [2]}), mode="replace")
        cursor.executemany("INSERT INTO prepared_into VALUES ($1)", [(3,)])
        cursor.execute("SELECT x FROM prepared_into ORDER BY x")
        assert cursor.fetchall() == [(2,), (3,)]


def test_explain_analyze_executes_once(writable):
    with writable.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE analyzed (x BIGINT)")
        partitions, _ = cursor.adbc_execute_partitions("EXPLAIN ANALYZE INSERT INTO analyzed VALUES (1)")
        for _ in range(3):
            cursor.adbc_read_partition(partitions[0])
            assert cursor.fetchall()
        cursor.execute("SELECT count(*) FROM analyzed")
        assert cursor.fetchall() == [(1,)]


def test_a_view_replaces_no_table(storing):
    with storing.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("kept_table", pa.table({"x": [1]}))
        with pytest.raises(Exception, match="is a table"):
            cursor.execute("CREATE OR REPLACE VIEW kept_table AS SELECT 1 AS x")
            cursor.fetchall()
        cursor.execute("SELECT x FROM kept_table")
        assert cursor.fetchall() == [(1,)]


def test_long_messages_arrive(reading):
    code, details = refusal(reading.raw().query, f"SELECT CAST('{'x' * 100_000}' AS INT)")
    assert code == "INVALID_ARGUMENT" and len(details) < 3000


@pytest.mark.parametrize(
    "option",
    ["datafusion.sql_parser.recursion_limit", "datafusion.execution.sort_spill_reservation_bytes", "datafusion.optimizer.max_passes"],
)
def test_options_that_are_the_servers(writable, option):
    assert refusal(writable.raw().query, f"SET {option} = 100000")[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize("sql", ["COMMIT", "PREPARE p AS SELECT 1", "DROP FUNCTION abs"])
def test_statements_that_there_are_not(writable, sql):
    code, details = refusal(writable.raw().query, sql)
    assert code == "UNIMPLEMENTED" and "Statement(" not in details


def test_a_computed_result_outlives_the_time_of_its_query(server):
    one = server("--limit", "query_timeout=0.4")
    calls = one.raw()
    info = calls.unary("GetFlightInfo", by_command(statement("SELECT 1")))
    assert info
    client = one.client()
    descriptor = flight.FlightDescriptor.for_command("SELECT 1 AS x")
    ticket = client.get_flight_info(descriptor).endpoints[0].ticket
    assert client.do_get(ticket).read_all().num_rows == 1
    running = calls.query(STREAMING)
    with pytest.raises(Exception):
        list(running)
    assert client.do_get(ticket).read_all().num_rows == 1, "a later fetch has a time of its own"


def test_the_end_of_the_server_is_told_to_exchanges(server):
    one = server("--limit", "drain_timeout=0.2")
    writer, reader = one.client().do_exchange(flight.FlightDescriptor.for_command("SELECT * FROM input"))
    writer.begin(pa.schema({"x": pa.int64()}))
    writer.write_table(pa.table({"x": [1]}))
    reader.read_chunk()
    one.terminate()
    with pytest.raises(flight.FlightCancelledError):
        reader.read_chunk()
    eventually(lambda: one.process.poll() == 0, "the end")


@pytest.fixture
def strict(server, tmp_path):
    """A server that knows one token, and the metadata that presents it."""
    file = tmp_path / "credentials.yaml"
    token = "a-token-of-a-test"
    file.write_text(f"tokens: [{{user: ci, write: true, sha256: {hashlib.sha256(token.encode()).hexdigest()}}}]")
    return server("--read-write", "--credentials", file), [("authorization", f"Bearer {token}")]


def test_strangers_are_refused_before_they_send(strict):
    one, known = strict
    large = b"x" * (64 << 20)
    for method in ("GetFlightInfo", "GetSchema", "PollFlightInfo"):
        assert refusal(one.raw().unary, method, by_command(large))[0] == "UNAUTHENTICATED"
    for method, request in (("DoGet", by_command(large)), ("DoAction", action("x", large)), ("ListFlights", large)):
        assert refusal(one.raw().streamed, method, request)[0] == "UNAUTHENTICATED"
    (schema, _), *_ = ipc_messages(pa.table({"x": [1]}))
    for method in ("DoPut", "DoExchange"):
        messages = [flight_data(by_path("t"), schema, large)]
        assert refusal(lambda: one.raw().exchanged(method, messages))[0] == "UNAUTHENTICATED"
    assert most_resident(one) < 150
    assert list(one.raw(metadata=known).query("SELECT 1"))


def test_calls_without_batches_are_small(strict):
    one, known = strict
    calls = one.raw(metadata=known)
    code, details = refusal(calls.unary, "GetFlightInfo", by_command(b" " * (8 << 20)))
    assert code == "RESOURCE_EXHAUSTED" and "message_bytes" in details
    code, details = refusal(lambda: one.raw().exchanged("Handshake", [b"x" * (1 << 20)]))
    assert code == "RESOURCE_EXHAUSTED" and "message_bytes" in details
    assert most_resident(one) < 150


@pytest.mark.parametrize(
    "expression",
    [
        "length(lpad('a', 2000000000))",
        "length(repeat('abcdefghij', 200000000))",
        "cardinality(range(0, 400000000))",
        "cardinality(range(0, 9000000000000000000))",
        "cardinality(generate_series(TIMESTAMP '1970-01-01', TIMESTAMP '2020-01-01', INTERVAL '1 nanosecond'))",
        "cardinality(array_repeat(1, 400000000))",
        "length(replace(repeat('a', 1000000), 'a', repeat('b', 1000000)))",
        "length(regexp_replace(repeat('a', 1000000), 'a', repeat('b', 1000000), 'g'))",
        "length(concat_ws(repeat(',', 200000000)" + ", 'a'" * 20 + "))",
        "length(array_to_string(range(0, 1000000), repeat(',', 1000000)))",
        "length(array_to_string([array_repeat('', 300000)], repeat('-', 6000)))",
        "cardinality(array_replace_all(array_repeat('a', 100000), 'a', repeat('b', 20000)))",
        "cardinality(array_union(range(0, 10000000), range(0, 15000000)))",
    ],
)
def test_functions_that_make_much_of_little(server, expression):
    one = server("--limit", "memory_mb=1000")
    calls = one.raw()
    code, details = refusal(calls.query, f"SELECT {expression}")
    assert code == "RESOURCE_EXHAUSTED" and "memory_mb" in details
    assert list(calls.query(f"EXPLAIN SELECT {expression}")), "planning computes none of it"
    assert most_resident(one) < 600


def test_a_row_of_a_gibibyte(server):
    one = server("--limit", "memory_mb=4000")
    table = one.client().do_get(flight.Ticket("SELECT repeat('x', 1073741824) AS t")).read_all()
    assert pa.compute.binary_length(table["t"]).to_pylist() == [1 << 30]
    # Arrow's text grows by doubling; a message is the text once more.
    assert most_resident(one) < 4500


def test_transactions_are_refused_everywhere(reading):
    calls = reading.raw()
    command = by_command(packed("CommandStatementQuery", (1, "SELECT 1"), (2, b"a transaction")))
    for method in ("GetFlightInfo", "GetSchema", "PollFlightInfo"):
        assert refusal(calls.unary, method, command)[0] == "UNIMPLEMENTED"
    (schema, body), *_ = ipc_messages(pa.table({"x": [1]}))
    exchange = [flight_data(command, schema, body)]
    assert refusal(lambda: calls.exchanged("DoExchange", exchange))[0] == "UNIMPLEMENTED"


def test_a_file_that_is_no_parquet(writable, allowed):
    (allowed / "broken.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    calls = writable.raw()
    code, details = refusal(
        calls.query, f"CREATE EXTERNAL TABLE broken STORED AS PARQUET LOCATION '{allowed / 'broken.parquet'}'"
    )
    assert code == "INVALID_ARGUMENT", details


def test_kept_results_count(server):
    one = server("--limit", "memory_mb=4")
    calls = one.raw()
    sql = "SELECT " + ", ".join(f"{i} AS c{i}" for i in range(1000))
    with pytest.raises(Exception, match="memory_mb"):
        for _ in range(10):
            calls.tickets(sql)


def test_constants_stay_constants(reading):
    """What the functions that are bounded give is still folded, pushed down, and taken where only constants are."""
    calls = reading.raw()
    client = reading.client()
    plan = client.do_get(flight.Ticket("EXPLAIN SELECT count(*) FROM dit.weights WHERE tensor = concat('final', '.weight')"))
    assert "concat" not in plan.read_all()["plan"][1].as_py()
    for sql in (
        "SELECT string_agg(x, concat(',', ' ')) FROM (VALUES ('a'), ('b')) AS t(x)",
        "SELECT lag(x, 1, concat('a', 'b')) OVER (ORDER BY x) FROM (VALUES ('a'), ('b')) AS t(x)",
        "SELECT * FROM generate_series(1, 5) LIMIT length(repeat('a', 3))",
    ):
        assert list(calls.query(sql))


def test_series_that_never_end(reading):
    for series in (
        "generate_series(DATE '2020-02-01', DATE '2020-01-15', INTERVAL '1 month -31 day')",
        "generate_series(TIMESTAMP '2021-02-01', TIMESTAMP '2021-03-01', INTERVAL '1 month -28 day')",
    ):
        code, details = refusal(reading.raw().query, f"SELECT cardinality({series})")
        assert code == "INVALID_ARGUMENT" and "one sign" in details


def test_errors_show_no_addresses(reading):
    code, details = refusal(reading.raw().query, "SELECT * FROM range(1, length(concat('a', random()::TEXT)))")
    assert code == "INVALID_ARGUMENT" and "0x" not in details and "Pool" not in details


def test_values_that_are_named_often(server):
    one = server()
    with one.connect() as connection, connection.cursor() as cursor, pytest.raises(Exception, match="memory_mb"):
        cursor.execute("SELECT " + ", ".join(f"length($1) AS a{i}" for i in range(300)), ("x" * 7_000_000,))
    assert most_resident(one) < 250


def test_values_in_kept_results_count(server):
    one = server("--limit", "memory_mb=100")
    with one.connect() as connection, connection.cursor() as cursor, pytest.raises(Exception, match="memory_mb"):
        cursor.adbc_prepare("SELECT length($1)")
        for _ in range(50):
            cursor.adbc_execute_partitions("SELECT length($1)", ("x" * 7_000_000,))
    assert most_resident(one) < 400


def test_strangers_probe_in_few_bytes(strict):
    one, _ = strict
    calls = one.raw()
    large = b"\n\x80\x80\x40" + b"x" * (1 << 20)
    assert refusal(calls.unary, "/grpc.health.v1.Health/Check", large)[0] == "RESOURCE_EXHAUSTED"
    # The service of reflection ends such a stream without a word.
    assert list(calls.exchanged("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [large])) == []


def test_readers_leave_nothing_in_the_directory(server, tmp_path):
    one = server("--ingest-directory", tmp_path)
    assert list(one.raw().query("SELECT 1"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
