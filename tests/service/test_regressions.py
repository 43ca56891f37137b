"""Ways in which a server was once wrong."""

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from conftest import STREAMING, eventually
from wire import by_command, refusal, statement


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
    rss = int(open(f"/proc/{one.process.pid}/status").read().split("VmHWM:")[1].split()[0])
    assert rss < 250_000, "300 MB of rows were not held"


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
