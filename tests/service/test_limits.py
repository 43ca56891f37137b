"""What a server allows, and how it says that it is enough."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pyarrow as pa
import pyarrow.flight as flight
import pytest

import wire
from conftest import ENDLESS, STREAMING, eventually, sparse_model
from wire import by_command, by_path, flight_data, message, packed, refusal, statement


def limits(**values):
    """The flags of limits."""
    return [part for name, value in values.items() for part in ("--limit", f"{name}={value}")]


def prepare(sql):
    return packed("ActionCreatePreparedStatementRequest", (1, sql))


def cookie(number):
    return ("cookie", f"arrow_flight_session_id={number:032x}")


# ---------------------------------------------------------------- queries


def test_queries_at_once(server):
    one = server(*limits(concurrent_queries=1, queued_queries=1))
    calls = one.raw()
    running = calls.query(STREAMING)
    next(running)
    assert one.running() == 1

    waited = []
    thread = threading.Thread(target=lambda: waited.extend(calls.query("SELECT 1")))
    thread.start()
    eventually(lambda: one.metric("arrow_quant_queries_queued") == 1, "the queue")
    code, details = refusal(calls.query, "SELECT 2")
    assert code == "RESOURCE_EXHAUSTED"
    assert "concurrent_queries" in details and "1 queries run and 1 wait" in details
    # What takes no time is answered all the same.
    assert calls.unary("GetFlightInfo", by_command(statement("SELECT 3")))
    assert list(calls.streamed("ListFlights", b""))

    running.cancel()
    thread.join()
    assert len(waited) > 1
    assert list(calls.query("SELECT 2"))


def test_waiting_has_an_end(server):
    one = server(*limits(concurrent_queries=1, queue_timeout=0.2))
    calls = one.raw()
    running = calls.query(STREAMING)
    next(running)
    code, details = refusal(calls.query, "SELECT 1")
    assert code == "RESOURCE_EXHAUSTED" and "queue_timeout" in details
    assert one.metric("arrow_quant_queries_queued") == 0
    running.cancel()
    assert list(calls.query("SELECT 1"))


def test_who_waits_and_leaves_gives_the_place_back(server):
    one = server(*limits(concurrent_queries=1, queued_queries=1))
    calls = one.raw()
    running = calls.query(STREAMING)
    next(running)
    for _ in range(3):
        waiting = calls.query("SELECT 1")
        eventually(lambda: one.metric("arrow_quant_queries_queued") == 1, "the queue")
        waiting.cancel()
        eventually(lambda: one.metric("arrow_quant_queries_queued") == 0, "the empty queue")
    running.cancel()
    one.idle()


def test_partitions_of_a_query_are_one_query(server):
    one = server("--threads", "4", *limits(concurrent_queries=1, queued_queries=0))
    calls = one.raw()
    for _ in range(20):
        tickets = calls.tickets("SELECT tensor, weights FROM dit.weights")
        assert len(tickets) > 1
        streams = [calls.fetch(ticket) for ticket in tickets]
        assert sum(len(list(stream)) for stream in streams) >= 2 * len(tickets)
        one.idle()


def test_partitions_of_a_query_wait_together(server):
    one = server(*limits(concurrent_queries=1, queued_queries=1, queue_timeout=3))
    calls = one.raw()
    (ticket,) = calls.tickets("SELECT 1")
    running = calls.query(ENDLESS)
    eventually(lambda: one.running() == 1, "the query")
    started = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        refusals = list(threads.map(lambda _: refusal(lambda: list(calls.fetch(ticket))), range(6)))
    assert all(code == "RESOURCE_EXHAUSTED" and details.startswith("queue_timeout") for code, details in refusals)
    assert time.monotonic() - started < 12, "they did not wait one after the other"
    running.cancel()


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """A server whose queries must be quick."""
    from conftest import start

    one = start(tmp_path_factory.mktemp("server"), "--read-write", *limits(query_timeout=0.4))
    yield one
    one.finish()


def test_queries_that_take_too_long(hurried):
    calls = hurried.raw()
    update = flight_data(by_command(packed("CommandStatementUpdate", (1, f"CREATE TABLE t AS {ENDLESS}"))))
    for call in (
        lambda: calls.query(ENDLESS),
        lambda: calls.fetch(calls.tickets(ENDLESS)[0]),
        lambda: calls.query(f"CREATE TABLE t AS {ENDLESS}"),
        lambda: calls.put(update),
    ):
        code, details = refusal(call)
        assert code == "DEADLINE_EXCEEDED" and "query_timeout" in details
    hurried.idle()
    with pytest.raises(flight.FlightTimedOutError, match="query_timeout"):
        hurried.client().do_get(flight.Ticket(ENDLESS)).read_all()
    assert list(calls.query("SELECT 1"))


def test_polling_for_what_takes_too_long(hurried):
    calls = hurried.raw()
    descriptor, codes = by_command(statement(ENDLESS)), []
    while not codes:
        try:
            descriptor = wire.fields(calls.unary("PollFlightInfo", descriptor))[2][0]
        except grpc.RpcError as error:
            codes.append((error.code().name, "query_timeout" in error.details()))
    assert codes == [("DEADLINE_EXCEEDED", True)]


def test_streams_of_clients_that_take_too_long(hurried):
    """A client that begins to send and never goes on."""
    calls = hurried.raw()
    (schema, _), *_ = wire.ipc_messages(pa.table({"x": [1]}))
    for method, descriptor in (("DoPut", by_path("slow")), ("DoExchange", by_command(b"SELECT x FROM input"))):
        release = threading.Event()

        def messages():
            yield flight_data(descriptor, schema, b"")
            release.wait(20)

        code, details = refusal(calls.exchanged, method, messages())
        release.set()
        assert code == "DEADLINE_EXCEEDED" and "query_timeout" in details, method
    assert refusal(calls.query, "SELECT * FROM slow")[0] == "INVALID_ARGUMENT"
    hurried.idle()


# ---------------------------------------------------------------- memory


JOIN = "SELECT count(*) FROM generate_series(1, {0}) AS a(x) JOIN generate_series(1, {0}) AS b(y) ON x = y"


def test_memory(server):
    one = server("--read-write", *limits(memory_mb=4))
    calls = one.raw()
    code, details = refusal(calls.query, JOIN.format(400_000))
    assert code == "RESOURCE_EXHAUSTED" and "memory_mb" in details
    assert "/tmp" not in details
    one.idle()
    assert one.metric("arrow_quant_memory_reserved_bytes") < 300_000, "no more than the plan of the result"
    assert list(calls.query(JOIN.format(100)))


def test_large_sorts_spill(server):
    one = server("--threads", "2", *limits(memory_mb=24))
    client = one.client()
    sql = f"SELECT x, '{'x' * 200}' AS t FROM generate_series(1, 150000) AS t(x) ORDER BY t, x DESC"
    first, last, rows = None, None, 0
    for chunk in client.do_get(flight.Ticket(sql)):
        column = chunk.data.column(0)
        first, last, rows = first or column[0].as_py(), column[-1].as_py(), rows + len(column)
    assert (first, last, rows) == (150_000, 1, 150_000)


def test_spilling_has_an_end(server):
    one = server("--threads", "2", *limits(memory_mb=24, spill_mb=8))
    sql = f"SELECT x, '{'x' * 200}' AS t FROM generate_series(1, 150000) AS t(x) ORDER BY t, x DESC"
    code, details = refusal(one.raw().query, sql)
    assert code == "RESOURCE_EXHAUSTED" and "/tmp" not in details and "spill_mb" in details


def test_tables_in_memory_count(server):
    one = server("--read-write", *limits(memory_mb=8))
    table = pa.table({"x": pa.array(range(200_000), pa.int64())})  # 1.6 MB
    with one.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("fits", table)
        held = one.metric("arrow_quant_memory_reserved_bytes")
        assert held >= 1_600_000
        with pytest.raises(Exception, match="memory_mb"):
            cursor.adbc_ingest("does_not", pa.concat_tables([table] * 10))
        with pytest.raises(Exception, match="memory_mb"):
            cursor.execute("CREATE TABLE neither AS SELECT x FROM generate_series(1, 2000000) AS t(x)")
            cursor.fetchall()
        assert one.metric("arrow_quant_memory_reserved_bytes") == held
        cursor.adbc_ingest("fits", table.slice(0, 10), mode="replace")
        assert one.metric("arrow_quant_memory_reserved_bytes") < held
        cursor.execute("SELECT count(*) FROM fits")
        assert cursor.fetchall() == [(10,)]
    eventually(lambda: one.metric("arrow_quant_memory_reserved_bytes") == 0, "the memory of the closed session")


# ---------------------------------------------------------------- sizes


def test_messages_that_are_too_large(server):
    one = server("--read-write", *limits(message_bytes=1 << 20))
    calls = one.raw()
    (schema, _), (header, body) = wire.ipc_messages(pa.table({"x": pa.array(range(300_000), pa.int64())}))
    code, details = refusal(calls.put, flight_data(by_path("t"), schema, b""), flight_data(None, header, body))
    assert code == "RESOURCE_EXHAUSTED" and "message_bytes" in details
    assert refusal(calls.query, "SELECT * FROM t")[0] == "INVALID_ARGUMENT"
    code, details = refusal(calls.unary, "GetFlightInfo", by_command(b" " * (2 << 20)))
    assert code == "RESOURCE_EXHAUSTED" and "message_bytes" in details
    # What clients receive has no such limit.
    table = one.client().do_get(flight.Ticket("SELECT repeat('x', 3000000) AS t")).read_all()
    assert len(table["t"][0].as_py()) == 3_000_000


def test_metadata_that_is_too_large(server):
    one = server(*limits(metadata_bytes=4096))
    calls = one.raw()
    code, _ = refusal(calls.query, "SELECT 1", metadata=[("x-large", "x" * 100_000)])
    assert code in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "UNAVAILABLE")
    assert list(calls.query("SELECT 1", metadata=[("x-small", "x" * 1000)]))


def test_statements_that_are_too_long(server):
    one = server(*limits(statement_bytes=2000))
    calls = one.raw()
    sql = "SELECT 1 -- " + "x" * 2000
    for code, details in (
        refusal(calls.query, sql),
        refusal(calls.unary, "GetFlightInfo", by_command(sql.encode())),
        refusal(calls.unary, "GetSchema", by_command(statement(sql))),
        refusal(calls.act, "CreatePreparedStatement", prepare(sql)),
    ):
        assert code == "RESOURCE_EXHAUSTED" and "statement_bytes" in details and "2000 are allowed" in details


# ---------------------------------------------------------------- sessions, results, statements


def test_sessions(server):
    one = server(*limits(sessions=3))
    calls = one.raw()
    for number in range(3):
        assert list(calls.query("SELECT 1", metadata=[cookie(number)]))
    code, details = refusal(calls.query, "SELECT 1", metadata=[cookie(3)])
    assert code == "RESOURCE_EXHAUSTED" and "sessions" in details
    assert one.metric("arrow_quant_sessions") == 3
    assert list(calls.query("SELECT 1", metadata=[cookie(2)]))
    calls.act("CloseSession", metadata=[cookie(1)])
    assert list(calls.query("SELECT 1", metadata=[cookie(3)]))


def test_tokens_of_handshakes(server):
    calls = server(*limits(sessions=3)).raw()
    tokens = [next(calls.exchanged("Handshake", [b""])) for _ in range(3)]
    code, details = refusal(calls.exchanged, "Handshake", [b""])
    assert code == "RESOURCE_EXHAUSTED" and "sessions" in details
    header = ("authorization", "Bearer " + wire.fields(tokens[0])[2][0].decode())
    calls.act("CloseSession", metadata=[header])
    assert next(calls.exchanged("Handshake", [b""]))


def test_sessions_that_are_not_used_end(server):
    one = server("--read-write", *limits(session_lifetime=0.3))
    calls = one.raw()
    list(calls.query("CREATE TABLE mine AS SELECT 1 AS x", metadata=[cookie(1)]))
    assert one.metric("arrow_quant_sessions") == 1
    eventually(lambda: one.metric("arrow_quant_sessions") == 0, "the end of the session")
    assert refusal(calls.query, "SELECT * FROM mine", metadata=[cookie(1)])[0] == "INVALID_ARGUMENT"


def test_a_session_whose_query_runs_is_used(server):
    one = server(*limits(session_lifetime=0.2))
    calls = one.raw()
    running = calls.query(STREAMING, metadata=[cookie(1)])
    next(running)
    other = calls.query("SELECT 1", metadata=[cookie(2)])
    list(other)
    eventually(lambda: one.metric("arrow_quant_sessions") == 1, "the end of the other session")
    assert next(running)
    running.cancel()
    eventually(lambda: one.metric("arrow_quant_sessions") == 0, "the end of the session")


def test_results_that_are_not_fetched_end(server):
    one = server(*limits(result_lifetime=0.3))
    calls = one.raw()
    (ticket,) = calls.tickets("SELECT 1")
    assert one.metric("arrow_quant_results_open") == 1
    assert list(calls.fetch(ticket))
    eventually(lambda: one.metric("arrow_quant_results_open") == 0, "the end of the result")
    code, details = refusal(calls.fetch, ticket)
    assert code == "NOT_FOUND" and "result_lifetime" in details


def test_results_that_are_renewed_live_on(server):
    one = server(*limits(result_lifetime=0.5))
    calls = one.raw()
    kept, left = (calls.unary("GetFlightInfo", by_command(statement(f"SELECT {x}"))) for x in (1, 2))
    endpoint, other = (wire.fields(info)[3][0] for info in (kept, left))

    def gone():
        calls.act("RenewFlightEndpoint", message((1, endpoint)))
        return one.metric("arrow_quant_results_open") == 1

    eventually(gone, "the end of the result that is not renewed")
    ticket = wire.fields(wire.fields(endpoint)[1][0])[1][0]
    assert list(calls.fetch(ticket))
    assert refusal(calls.act, "RenewFlightEndpoint", message((1, other)))[0] == "NOT_FOUND"


def test_statements(server):
    one = server(*limits(statements=3))
    calls = one.raw()
    prepared = [calls.act("CreatePreparedStatement", prepare("SELECT 1"))[0] for _ in range(3)]
    code, details = refusal(calls.act, "CreatePreparedStatement", prepare("SELECT 1"))
    assert code == "RESOURCE_EXHAUSTED" and "statements" in details
    assert one.metric("arrow_quant_statements_open") == 3
    handle = wire.fields(wire.fields(prepared[0])[2][0])[1][0]
    calls.act("ClosePreparedStatement", packed("ActionClosePreparedStatementRequest", (1, handle)))
    assert calls.act("CreatePreparedStatement", prepare("SELECT 1"))
    command = packed("CommandPreparedStatementQuery", (1, handle))
    assert refusal(calls.unary, "GetFlightInfo", by_command(command))[0] == "NOT_FOUND"


def test_open_results(server):
    one = server(*limits(statements=3))
    calls = one.raw()
    tickets = [calls.tickets("SELECT 1")[0] for _ in range(3)]
    code, details = refusal(calls.tickets, "SELECT 1")
    assert code == "RESOURCE_EXHAUSTED" and "statements" in details
    # What was fetched makes room.
    assert list(calls.fetch(tickets[0]))
    assert calls.tickets("SELECT 1")
    for _ in range(10):
        assert list(calls.query("SELECT 1", metadata=[cookie(1)]))


# ---------------------------------------------------------------- queries that keep their thread

SETTINGS = [
    f"{bits}, {size}, '{scheme}'"
    for bits in (2, 4, 8)
    for size in (32, 64, 128, 256)
    for scheme in ("affine", "symmetric", "asymmetric")
]

# Each takes long on one thread, which it does not leave: within one row, over weights again and again, in a join.
BUSY = [
    "SELECT " + " + ".join(f"sqnr(quantize(weights, {settings}))" for settings in SETTINGS) + " AS x FROM large.weights",
    "SELECT "
    + " + ".join(f"sqnr_agg(weights, dequantize(quantize(weights, {settings})))" for settings in SETTINGS)
    + " AS x FROM large.weights",
    "SELECT sum(sqnr(quantize(weights, 2, 32))) FROM dit.weights, generate_series(1, 1000000) WHERE weights['dtype'] = 'BF16'",
    "SELECT count(*) FROM generate_series(1, 1000000) AS a(x), generate_series(1, 1000000) AS b(y) WHERE x + y > 0",
]

# What a busy machine may add to the 0.2 s that a query may go on.
SLACK = 3


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of one row of 1 GiB, which is worked on for as long as there are functions. Its file takes no room on the disk."""
    return f"large={sparse_model(tmp_path_factory.mktemp('large') / 'model.safetensors', [1 << 14, 1 << 14])}"


@pytest.mark.parametrize("sql", BUSY)
def test_a_timeout_ends_what_keeps_the_only_thread(server, large, sql):
    one = server("--model", large, "--threads", "1", *limits(query_timeout=2, concurrent_queries=1))
    started = time.monotonic()
    code, details = refusal(one.raw().query, sql)
    assert code == "DEADLINE_EXCEEDED" and "query_timeout" in details
    assert time.monotonic() - started < 2 + SLACK
    started = time.monotonic()
    assert list(one.raw().query("SELECT 1"))
    assert time.monotonic() - started < SLACK


@pytest.mark.parametrize("sql", BUSY)
def test_who_leaves_what_keeps_the_only_thread_frees_the_place(server, large, sql):
    one = server("--model", large, "--threads", "1", *limits(concurrent_queries=1))
    running = one.raw().query(sql)
    eventually(lambda: one.running() == 1, "the query")
    running.cancel()
    started = time.monotonic()
    eventually(lambda: one.running() == 0, "the free place")
    assert time.monotonic() - started < SLACK
    assert list(one.raw().query("SELECT 1"))

