"""Clients that are broken, hostile, or killed: the server stays up, and nothing of theirs is left."""

import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.flight as flight
import pytest

import wire
from conftest import DEADLINE, ENDLESS, STREAMING, eventually
from wire import TYPE, action, by_command, by_path, flight_data, message, packed, refusal, statement, varint

# How a server may refuse what it cannot understand.
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}

TABLE = pa.table({"x": pa.array([1, 2, 3], pa.int64()), "text": ["a", None, "c"], "list": [[1.5], [], None]})


def plain(server):
    """A connection that has said nothing yet."""
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


def encrypted(server, authority):
    """A connection that has agreed on encryption, and said nothing else."""
    context = ssl.create_default_context(cafile=authority.root_file)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain(server), server_hostname="127.0.0.1")


def serves(server):
    """The server answers as if nothing had happened."""
    table = server.client().do_get(flight.Ticket("SELECT count(*) AS n FROM dit.weights")).read_all()
    assert table.to_pylist() == [{"n": 56}]


# ---------------------------------------------------------------- messages


def test_tickets_that_nobody_gave(writable):
    calls = writable.raw()
    chance = random.Random(5)
    tickets = [chance.randbytes(length) for length in (1, 3, 16, 20, 100, 10_000) for _ in range(10)]
    tickets += [b"", b" ", b"\0" * 20, "ü".encode() * 1000, b"SELECT", b"/etc/passwd", b"\x0a\x05"]
    tickets += [packed("TicketStatementQuery", (1, chance.randbytes(length))) for length in (0, 1, 16, 20, 21, 4096)]
    tickets += [
        packed(name, (1, b"x")) for name in ("NoSuchCommand", "CommandStatementUpdate", "CommandStatementIngest")
    ]
    tickets += [message((1, "type.googleapis.com/google.protobuf.Any"), (2, b"x")), message((1, TYPE), (2, b""))]
    for ticket in tickets:
        code, details = refusal(calls.fetch, ticket)
        assert code in REFUSED, (ticket[:60], code, details)
    # The ticket of a result, with a partition it does not have.
    (ticket,) = calls.tickets("SELECT 1")
    handle = wire.fields(wire.fields(ticket)[2][0])[1][0]
    for other in (handle[:-4] + b"\xff" * 4, handle[:-1], handle + b"x", bytes(16) + handle[16:]):
        assert refusal(calls.fetch, packed("TicketStatementQuery", (1, other)))[0] in REFUSED
    assert list(calls.fetch(ticket))
    serves(writable)


def test_commands_that_are_cut_off(writable):
    calls = writable.raw()
    commands = [
        statement("SELECT 1"),
        packed("CommandGetTables", (1, "datafusion"), (2, "d%"), (3, "%"), (5, 1)),
        packed("CommandPreparedStatementQuery", (1, b"x" * 16)),
        packed("CommandGetSqlInfo", (1, 0)),
    ]
    for command in commands:
        for end in range(0, len(command), 3):
            code, details = refusal_or_none(calls.unary, "GetFlightInfo", by_command(command[:end]))
            assert code in REFUSED | {None}, (command[:end], code, details)
    serves(writable)


def refusal_or_none(call, *arguments):
    try:
        answer = call(*arguments)
        if not isinstance(answer, (bytes, list)):
            list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return None, None


@pytest.mark.parametrize(
    "method",
    [
        "GetFlightInfo",
        "GetSchema",
        "PollFlightInfo",
        "DoGet",
        "DoPut",
        "DoExchange",
        "DoAction",
        "ListFlights",
        "Handshake",
    ],
)
def test_messages_that_are_no_protobuf(writable, method):
    calls = writable.raw()
    chance = random.Random(7)
    nested = b""
    for _ in range(2000):
        nested = message((1, nested))
    broken = [
        b"\xff" * 100,
        b"\x0a" + varint(2**31 - 1),  # a field that is said to have 2 GiB
        b"\x0a" + varint(2**63),
        b"\x12" + b"\xff" * 9 + b"\x7f",
        nested,
        message((1, 2), (2, nested)),
        by_command(nested),
        message((3, b"\xff\xfe")),
        *(chance.randbytes(50) for _ in range(20)),
    ]
    for request in broken:
        code, details = refusal_or_none(calls.exchanged, method, [request])
        assert code in REFUSED | {None, "INTERNAL", "UNAUTHENTICATED"}, (request[:40], code, details)
        assert "panicked" not in (details or "")
    serves(writable)


def test_bytes_that_are_no_grpc(writable):
    host, port = writable.address.split(":")
    chance = random.Random(11)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
        preface + b"\xff" * 1000,
        preface + b"\0\0\0\x04\0\0\0\0\0" + b"\0\xff\xff\x01\x04\0\0\0\x01" + bytes(100),
        preface + b"".join(b"\0\0\0\x04\0\0\0\0\0" for _ in range(5000)),
        *(chance.randbytes(500) for _ in range(20)),
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            try:
                connection.sendall(data)
            except OSError:  # the server has hung up already
                pass
    # Half of a request, and connections that say nothing.
    silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(100)]
    serves(writable)
    for connection in silent:
        connection.close()


def test_connections_that_say_nothing_are_closed(server, writable, authority):
    guarded = server(*authority.flags)
    clients = [writable.client(), guarded.client(tls_root_certs=authority.root)]
    for client in clients:
        client.do_get(flight.Ticket("SELECT 1")).read_all()
    started = time.monotonic()
    silent = [plain(writable), plain(guarded), encrypted(guarded, authority), plain(writable)]
    silent[-1].send(b"PRI * HTTP/2.0")
    for connection in silent:
        with connection:
            while connection.recv(1000):  # what the server begins with
                pass
            assert time.monotonic() - started > 5, "they had time"
    # Who has greeted stays.
    for client in clients:
        client.do_get(flight.Ticket("SELECT 1")).read_all()


def test_more_connections_than_handles(server):
    one = server()
    serves(one)
    handles = len(os.listdir(f"/proc/{one.process.pid}/fd"))
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (handles + 20, handles + 20))
    many = [plain(one) for _ in range(100)]
    eventually(lambda: "no connection can be accepted" in one.errors(), "a warning")
    for connection in many:
        connection.close()
    serves(one)
    # It rested between one attempt and the next.
    assert one.errors().count("no connection can be accepted") < 60


def test_calls_that_there_are_not(writable):
    calls = writable.raw()
    for method in ("NoSuchMethod", "/no.such.Service/Method", "/", "/x"):
        assert refusal(calls.unary, method, b"")[0] in ("UNIMPLEMENTED", "INVALID_ARGUMENT")


# ---------------------------------------------------------------- streams


def streams():
    """Streams of DoPut and DoExchange that are wrong, by what is wrong with them. `None` is where the descriptor goes."""
    (schema, _), (header, body) = wire.ipc_messages(TABLE)
    (other, _), (other_header, other_body) = wire.ipc_messages(pa.table({"y": ["x"] * 100}))
    first = lambda *parts: (None, *parts)
    good = first(schema, b"")
    yield "nothing", []
    yield "no descriptor", [("", schema, b"")]
    yield "an unknown kind of descriptor", [(message((1, 9)), schema, b"")]
    yield "no schema", [first(None, None)]
    yield "the batch first", [first(header, body)]
    yield "the batch alone", [first(None, None), ("", header, body)]
    yield "garbage for a schema", [first(b"\xff" * 200, b"")]
    yield "zeros for a schema", [first(bytes(200), b"")]
    yield "half a schema", [first(schema[: len(schema) // 2], b"")]
    yield "garbage for a batch", [good, ("", b"\xff" * 100, b"")]
    yield "half a batch's header", [good, ("", header[: len(header) // 2], body)]
    yield "half a batch's body", [good, ("", header, body[: len(body) // 2])]
    yield "a batch without body", [good, ("", header, None)]
    yield "another schema's batch", [good, ("", other_header, other_body)]
    yield "a batch of the other way round", [first(other, b""), ("", header, body)]
    yield "a second schema", [good, ("", other, b""), ("", other_header, other_body)]
    yield "dictionaries without values", dictionary_stream(first)


def dictionary_stream(first):
    words = pa.table({"d": pa.array(["a", "b"]).dictionary_encode()})
    (schema, _), _, (header, body) = wire.ipc_messages(words)
    return [first(schema, b""), ("", header, body)]


@pytest.mark.parametrize(("name", "parts"), list(streams()), ids=[name for name, _ in streams()])
def test_streams_that_are_wrong(writable, name, parts):
    calls = writable.raw()
    ingest = packed("CommandStatementIngest", (1, message((1, 1), (2, 3))), (2, "wrong"))
    for method, descriptor in (
        ("DoPut", by_path("wrong")),
        ("DoPut", by_command(ingest)),
        ("DoExchange", by_command(b"SELECT * FROM input")),
    ):
        stream = [flight_data(descriptor if kind is None else kind or None, *rest) for kind, *rest in parts]
        code, details = refusal(calls.exchanged, method, stream)
        assert code == "INVALID_ARGUMENT", (method, code, details)
    assert refusal(calls.query, "SELECT * FROM wrong")[0] == "INVALID_ARGUMENT"


def test_streams_with_bits_turned_over(writable):
    """A batch whose bytes were damaged is refused, or is another batch; the server survives both."""
    calls = writable.raw()
    (schema, _), (header, body) = wire.ipc_messages(TABLE)
    chance = random.Random(3)
    codes = set()
    for at in [*range(len(header)), *(None for _ in range(60))]:
        parts = [bytearray(schema), bytearray(header), bytearray(body)]
        if at is not None:
            parts[1][at] ^= 1 << chance.randrange(8)
        else:
            damaged = chance.choice(parts)
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        stream = [flight_data(by_command(b"SELECT * FROM input"), parts[0], b""), flight_data(None, parts[1], parts[2])]
        codes.add(refusal_or_none(calls.exchanged, "DoExchange", stream)[0])
    assert codes <= {None, "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
    serves(writable)


def test_compressed_batches_that_claim_to_be_huge(writable):
    calls = writable.raw()
    sink = pa.BufferOutputStream()
    table = pa.table({"x": pa.array([0] * 100_000, pa.int64())})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write(table)
    (schema, _), (header, body) = wire.ipc_messages(table)
    data = sink.getvalue().to_pybytes()
    at = data.index((800_000).to_bytes(8, "little"))
    for claimed in (2**40, 2**62, 2**63 - 1):
        bomb = data[:at] + claimed.to_bytes(8, "little") + data[at + 8 :]
        parts = list(split(bomb))
        stream = [flight_data(by_path("bomb") if not i else None, *part) for i, part in enumerate(parts)]
        assert refusal(calls.put, *stream)[0] in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
    serves(writable)


def split(data):
    """The messages (header, body) of an IPC stream."""
    source = pa.BufferReader(data)
    while True:
        try:
            one = pa.ipc.read_message(source)
        except EOFError:
            return
        yield one.metadata.to_pybytes(), one.body.to_pybytes() if one.body is not None else b""


def test_exchanges_that_make_no_sense(writable):
    calls = writable.raw()
    (schema, _), (header, body) = wire.ipc_messages(TABLE)
    for descriptor in (
        by_path("dit", "tensors"),
        by_command(b""),
        by_command(b"\xff\xfe"),
        by_command(packed("CommandGetCatalogs")),
    ):
        stream = [flight_data(descriptor, schema, b""), flight_data(None, header, body)]
        code, details = refusal_or_none(calls.exchanged, "DoExchange", stream)
        assert code in REFUSED | {None}, (descriptor, details)
    serves(writable)


# ---------------------------------------------------------------- actions


def test_actions_that_are_not_understood(writable):
    calls = writable.raw()
    names = [wire.fields(kind)[1][0].decode() for kind in calls.streamed("ListActions", b"")]
    assert len(names) >= 13
    for name in names:
        for body in (
            b"",
            b"\xff" * 50,
            b"{",
            b"[]",
            b"null",
            b'{"id": 5}',
            b"[" * 10_000,
            b'{"a":' * 10_000,
            packed("X"),
        ):
            code, details = refusal_or_none(calls.act, name, body)
            assert code in REFUSED | {None}, (name, body[:30], code, details)
            if code is None:
                assert name in ("CloseSession", "GetSessionOptions", "SetSessionOptions", "list_models"), (
                    name,
                    body[:30],
                )
    for name in ("", "no such action", "x" * 100_000, "CLOSESESSION"):
        code, details = refusal(calls.act, name)
        assert code == "UNIMPLEMENTED" and len(details) < 2000
    serves(writable)


# ---------------------------------------------------------------- SQL


DEEP = 5000


def doubling(levels):
    """A short statement that stands for 2^levels scans."""
    tables = [f"t{i} AS (SELECT a.x FROM t{i - 1} a, t{i - 1} b)" for i in range(1, levels + 1)]
    return f"WITH t0 AS (SELECT 1 AS x), {', '.join(tables)} SELECT count(*) FROM t{levels}"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * DEEP + "1" + ")" * DEEP,
        "SELECT " + "(" * DEEP,
        "SELECT " + "NOT " * DEEP + "true",
        "SELECT " + " + ".join(["1"] * DEEP),
        "SELECT * FROM dit.tensors WHERE " + " OR ".join(f"elements = {i}" for i in range(DEEP)),
        "SELECT * FROM dit.tensors WHERE elements IN (" + ",".join(map(str, range(DEEP))) + ")",
        "SELECT " + "abs(" * 1000 + "1" + ")" * 1000,
        "SELECT " + "CASE WHEN true THEN " * 500 + "1" + " END" * 500,
        "SELECT " + "[" * 500 + "1" + "]" * 500,
        "SELECT * FROM " + "(SELECT * FROM " * 200 + "dit.tensors" + ")" * 200,
        " UNION ALL ".join(["SELECT 1"] * 500),
        "SELECT " + "+".join(["1"] * 200_000),
        "SELECT 1" + " = 1" * DEEP,
        "SELECT true" + " XOR true" * DEEP,
        "SELECT 1" + " IS NULL" * DEEP,
        "SELECT now()" + " AT TIME ZONE 'UTC'" * DEEP,
        "SELECT count(*) FROM " + ", ".join(f"(SELECT 1) AS a{i}" for i in range(1500)),
        doubling(30),
        "SELECT '" + "x" * 900_000 + "'",
        "SELECT 1" + " " * 900_000,
        "SELECT " + ", ".join(f"1 AS c{i}" for i in range(5000)),
        "SELECT " + "x" * 100_000,
        ";" * 100_000,
        "SELECT 1; SELECT 2",
        "SELECT 1 /* " * 10_000,
        "\0",
        "SELECT '\ud7ff\uffff'",
        "",
        "   ",
    ],
    ids=lambda sql: f"{sql[:24]!r}…{len(sql)}".encode("unicode_escape").decode(),
)
def test_sql_that_nobody_writes(server, sql):
    one = server()
    calls = one.raw()
    code, details = refusal_or_none(lambda: calls.query(sql, timeout=60))
    assert code in {None, "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}, (code, details[:500])
    assert len(details or "") < 20_000
    serves(one)


def test_a_statement_of_many_megabytes(writable):
    for size, limit in ((2 << 20, "statement_bytes"), (16 << 20, "message_bytes")):
        code, details = refusal(writable.raw().query, "SELECT '" + "x" * size + "'")
        assert code == "RESOURCE_EXHAUSTED" and limit in details and len(details) < 1000


def test_a_result_of_one_large_row(writable):
    client = writable.client()
    table = client.do_get(flight.Ticket("SELECT repeat('x', 50000000) AS t")).read_all()
    assert len(table["t"][0].as_py()) == 50_000_000


# ---------------------------------------------------------------- many of them


def test_ten_thousand_handshakes(server):
    one = server()
    calls = one.raw()

    def shake(_):
        return refusal_or_none(calls.unary, "Handshake", b"")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(shake, range(10_000)))
    refused = [details for code, details in answers if code == "RESOURCE_EXHAUSTED"]
    assert len(refused) == 9_000 and all("sessions" in details for details in refused[:10])
    assert sum(code is None for code, _ in answers) == 1_000
    serves(one)


def test_ten_thousand_sessions(server):
    one = server()
    calls = one.raw()

    def begin(number):
        cookie = ("cookie", f"arrow_flight_session_id={number:032x}")
        options = {"metadata": [cookie]}
        return refusal_or_none(lambda: calls.streamed("ListFlights", message((1, "no such table")), **options))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(begin, range(10_000)))
    assert sum(code is None for code, _ in answers) == 1_000
    assert {code for code, _ in answers} == {None, "RESOURCE_EXHAUSTED"}
    assert one.metric("arrow_quant_sessions") == 1_000
    # Those that were there first still are.
    assert begin(5) == (None, None)


def test_many_clients_at_once(writable):
    def work(number):
        client = writable.client()
        for turn in range(5):
            if (number + turn) % 3 == 0:
                reader = client.do_get(flight.Ticket(STREAMING))
                reader.read_chunk()
                reader.cancel()
            else:
                table = client.do_get(flight.Ticket(f"SELECT {number} AS n, count(*) AS c FROM dit.weights")).read_all()
                assert table.to_pylist() == [{"n": number, "c": 56}]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(32)))
    writable.idle()


# ---------------------------------------------------------------- clients that die

CLIENT = """
import sys, time
import pyarrow as pa, pyarrow.flight as flight

uri, what = sys.argv[1:]
client = flight.FlightClient(uri)
if what == "get":
    reader = client.do_get(flight.Ticket("SELECT x FROM generate_series(1, 1000000000000) AS t(x)"))
    reader.read_chunk()
elif what == "exchange":
    batch = pa.record_batch({"x": pa.array(range(100_000), pa.int64())})
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"SELECT x FROM input"))
    writer.begin(batch.schema)
    writer.write_batch(batch)
    reader.read_chunk()
else:
    batch = pa.record_batch({"x": pa.array(range(100_000), pa.int64())})
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("half"), batch.schema)
    for _ in range(10):
        writer.write_batch(batch)
print("under way", flush=True)
time.sleep(600)
"""


def killed(server, what, while_it_runs):
    """Runs a client, and kills it once it is in the middle of what it does."""
    client = subprocess.Popen([sys.executable, "-c", CLIENT, server.uri, what], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout.readline() == "under way\n"
        while_it_runs()
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        client.stdout.close()


def files(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file()]


def test_a_client_killed_while_it_stores_a_table(server, tmp_path):
    one = server("--read-write", "--ingest-directory", tmp_path)
    before = len(files(tmp_path))
    killed(one, "put", lambda: eventually(lambda: len(files(tmp_path)) > before, "a staged file"))
    one.idle()
    eventually(lambda: len(files(tmp_path)) == before, "the removal of what was staged")
    assert refusal(one.raw().query, "SELECT * FROM half")[0] == "INVALID_ARGUMENT"
    assert not any(b"half" in info for info in one.raw().streamed("ListFlights", b""))
    # The name is free.
    writer, _ = one.client().do_put(flight.FlightDescriptor.for_path("half"), TABLE.schema)
    with writer:
        writer.write_table(TABLE)
    assert one.client().do_get(flight.Ticket("SELECT x FROM half")).read_all().num_rows == 3


def test_a_client_killed_while_it_stores_a_table_in_memory(server):
    one = server("--read-write")
    memory = lambda: one.metric("arrow_quant_memory_reserved_bytes")
    killed(one, "put", lambda: eventually(memory, "memory of the table"))
    one.idle()
    eventually(lambda: memory() == 0, "the memory given back")
    assert refusal(one.raw().query, "SELECT * FROM half")[0] == "INVALID_ARGUMENT"


def test_a_server_killed_while_a_table_is_stored(server, tmp_path):
    flags = ("--read-write", "--ingest-directory", tmp_path)
    first = server(*flags)
    before = len(files(tmp_path))
    killed_server = lambda: (eventually(lambda: len(files(tmp_path)) > before, "a staged file"), first.process.kill())
    first.stopped = True
    killed(first, "put", killed_server)
    second = server(*flags)
    assert len(files(tmp_path)) == before
    assert refusal(second.raw().query, "SELECT * FROM half")[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("what", ["get", "exchange"])
def test_a_client_killed_while_it_reads(writable, what):
    killed(writable, what, lambda: eventually(lambda: writable.running() == 1, "the query"))
    writable.idle()
    serves(writable)


def test_a_client_that_leaves_a_query_that_gives_nothing(writable):
    calls = writable.raw()
    call = calls.query(ENDLESS)
    eventually(lambda: writable.running() == 1, "the query")
    call.cancel()
    writable.idle()
    thread = threading.Thread(target=lambda: refusal_or_none(calls.query, f"CREATE TABLE never AS {ENDLESS}"))
    thread.start()
    eventually(lambda: writable.running() == 1, "the statement")
    calls.close()
    thread.join()
    writable.idle()


# ---------------------------------------------------------------- the end of the server


def test_a_query_that_runs_is_completed_before_the_end(server):
    one = server()
    client = one.client()
    reader = client.do_get(flight.Ticket("SELECT x, repeat('x', 1000) AS t FROM generate_series(1, 60000) AS t(x)"))
    rows = reader.read_chunk().data.num_rows
    assert one.running() == 1  # 60 MB do not fit what is under way
    one.terminate()
    refused = eventually(lambda: code_of_a_new_call(one), "the end of new calls")
    assert refused == "UNAVAILABLE"
    for chunk in reader:
        rows += chunk.data.num_rows
    assert rows == 60_000
    assert one.wait() == 0


def code_of_a_new_call(server):
    calls = wire.Client(server.address)
    try:
        return refusal_or_none(lambda: calls.query("SELECT 1", timeout=5))[0]
    finally:
        calls.close()


def test_a_query_that_does_not_end_is_cancelled_at_the_end(server):
    one = server("--limit", "drain_timeout=0.3")
    calls = one.raw()
    running = calls.query(ENDLESS)
    eventually(lambda: one.running() == 1, "the query")
    one.terminate()
    assert refusal(lambda: running)[0] in ("CANCELLED", "UNAVAILABLE")
    assert one.wait() == 0


def test_idle_connections_do_not_hold_up_the_end(server):
    one = server()
    for client in [one.client() for _ in range(5)]:
        client.do_get(flight.Ticket("SELECT 1")).read_all()
    with one.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()
    one.connect()
    one.terminate()
    assert one.wait() == 0


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_connections_that_say_nothing_at_the_end(server, authority, is_encrypted):
    one = server("--limit", "drain_timeout=100", *(authority.flags if is_encrypted else ()))
    begin = (lambda: encrypted(one, authority)) if is_encrypted else (lambda: plain(one))
    with plain(one), begin() as silent, begin() as other:
        for connection in silent, other:
            assert connection.recv(1), "the server begins by itself, once it has the connection"
        other.send(b"PRI * HTTP")
        started = time.monotonic()
        one.terminate()
        assert one.wait() == 0
        assert time.monotonic() - started < 7, "less than they have for a greeting"


def test_an_action_that_runs_at_the_end(server, tmp_path):
    one = server("--read-write", "--allow", tmp_path)
    calls = one.raw()
    body = f'{{"model": "dit", "output": "{tmp_path}/out"}}'.encode()
    results = calls.streamed("DoAction", action("quantize_model", body))
    next(results)
    one.terminate()
    assert b"result" in list(results)[-1]
    assert one.wait() == 0
    assert (tmp_path / "out").exists()
