"""Who is let in, what they may do, and which files they reach."""

import base64
import hashlib
import json
import shutil
import socket
import ssl

import adbc_driver_manager as adbc
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from adbc_driver_manager import AdbcStatusCode as Code

import wire
from conftest import MODEL, run, start
from wire import by_command, by_path, message, packed, refusal, statement

ONE = message((1, "SELECT 1 AS one"))  # a ticket

TOKENS = {"machine": "a token of a user of its own", "ada": "what ada gave to a script", "old": "a token that expired"}


def basic(user, password):
    return ("authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())


def bearer(token):
    return ("authorization", f"Bearer {token}")


def sum_of(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="session")
def credentials(tmp_path_factory, hashed):
    """A file of users and tokens."""
    path = tmp_path_factory.mktemp("credentials") / "credentials.yaml"
    users = [
        {"name": "ada", "password": hashed("lovelace"), "write": True},
        {"name": "carol", "password": hashed("lovelace"), "write": True},
        {"name": "bob", "password": hashed("builder")},
    ]
    tokens = [
        {"user": "machine", "sha256": sum_of(TOKENS["machine"])},
        {"user": "ada", "sha256": sum_of(TOKENS["ada"]), "expires": "2999-01-31T00:00:00Z"},
        {"user": "ada", "sha256": sum_of(TOKENS["old"]), "expires": "2020-01-31T00:00:00Z", "write": True},
    ]
    path.write_text(json.dumps({"users": users, "tokens": tokens}))
    return path


@pytest.fixture(scope="session")
def guarded(tmp_path_factory, authority, credentials):
    """A server with TLS that knows its users."""
    flags = [*authority.flags, "--credentials", credentials, "--read-write"]
    one = start(tmp_path_factory.mktemp("guarded"), *flags)
    yield one
    one.finish()


@pytest.fixture
def calls(guarded, authority):
    """Single calls, without credentials unless they are given."""
    return guarded.raw(root=authority.root)


# ---------------------------------------------------------------- TLS


def test_tls(server, authority):
    one = server(*authority.flags)
    assert one.uri.startswith("grpc+tls://")
    client = one.client(tls_root_certs=authority.root)
    assert client.do_get(flight.Ticket("SELECT 1 AS x")).read_all().to_pylist() == [{"x": 1}]
    with one.connect(TLS_ROOT_CERTS=authority.root.decode()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_an_authority_that_did_not_sign(server, authority, stranger):
    one = server(*authority.flags)
    with pytest.raises(flight.FlightUnavailableError):
        one.client(tls_root_certs=stranger.root).do_get(flight.Ticket("SELECT 1"))
    with pytest.raises(adbc.Error), one.connect(TLS_ROOT_CERTS=stranger.root.decode()) as connection:
        connection.cursor().execute("SELECT 1")
    assert refusal(one.raw(root=stranger.root).unary, "GetSchema", by_path("dit", "tensors"))[0] == "UNAVAILABLE"


def test_plain_text_to_a_port_of_tls(server, authority):
    one = server(*authority.flags)
    assert refusal(one.raw().unary, "GetSchema", by_path("dit", "tensors"))[0] == "UNAVAILABLE"
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(range(256)) * 20,
        b"\x16\x03\x01",
    ):
        with socket.create_connection(one.address.split(":"), timeout=5) as connection:
            connection.sendall(garbage)
    assert one.client(tls_root_certs=authority.root).do_get(flight.Ticket("SELECT 1")).read_all().num_rows == 1


def test_only_current_versions_of_tls(server, authority):
    host, port = server(*authority.flags).address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.root_file)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port)) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3") and secure.selected_alpn_protocol() == "h2"


def test_mutual_tls(server, authority, stranger):
    one = server(*authority.flags, "--tls-client-ca", authority.root_file, "--read-write")
    certificate, key = authority.issue("ada.example")
    client = one.client(tls_root_certs=authority.root, cert_chain=certificate, private_key=key)
    client.do_get(flight.Ticket("CREATE TABLE mine AS SELECT 1 AS x")).read_all()
    assert client.do_get(flight.Ticket("SELECT x FROM mine")).read_all().num_rows == 1
    with (
        one.connect(
            TLS_ROOT_CERTS=authority.root.decode(), MTLS_CERT_CHAIN=certificate.decode(), MTLS_PRIVATE_KEY=key.decode()
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]
    # Another certificate is another user.
    certificate, key = authority.issue("bob.example")
    other = one.client(tls_root_certs=authority.root, cert_chain=certificate, private_key=key)
    assert other.do_get(flight.Ticket("SELECT 1")).read_all().num_rows == 1
    with pytest.raises(pa.ArrowInvalid, match="mine"):
        other.do_get(flight.Ticket("SELECT x FROM mine")).read_all()
    # None, and one that somebody else signed.
    with pytest.raises((flight.FlightUnavailableError, flight.FlightUnauthenticatedError)):
        one.client(tls_root_certs=authority.root).do_get(flight.Ticket("SELECT 1")).read_all()
    certificate, key = stranger.issue("ada.example")
    with pytest.raises((flight.FlightUnavailableError, flight.FlightUnauthenticatedError)):
        one.client(tls_root_certs=authority.root, cert_chain=certificate, private_key=key).do_get(
            flight.Ticket("SELECT 1")
        ).read_all()


def test_users_of_certificates_are_named_in_logs(server, authority):
    one = server(*authority.flags, "--tls-client-ca", authority.root_file)
    certificate, key = authority.issue("ada.example")
    one.client(tls_root_certs=authority.root, cert_chain=certificate, private_key=key).do_get(
        flight.Ticket("SELECT 1")
    ).read_all()
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    assert f"certificate-{hashlib.sha256(der).hexdigest()[:16]}" in one.errors()


# ---------------------------------------------------------------- credentials


def test_basic_on_each_call(guarded, authority):
    header = basic("ada", "lovelace")
    client = guarded.client(tls_root_certs=authority.root)
    options = flight.FlightCallOptions(headers=[(header[0].encode(), header[1].encode())])
    assert client.do_get(flight.Ticket("SELECT 1"), options).read_all().num_rows == 1
    with guarded.connect(TLS_ROOT_CERTS=authority.root.decode(), AUTHORIZATION_HEADER=header[1]) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]


def test_handshake(guarded, authority):
    client = guarded.client(tls_root_certs=authority.root)
    header = client.authenticate_basic_token("ada", "lovelace")
    assert header[0] == b"authorization" and header[1].startswith(b"Bearer ")
    options = flight.FlightCallOptions(headers=[header])
    assert client.do_get(flight.Ticket("SELECT 1"), options).read_all().num_rows == 1
    with (
        guarded.connect(TLS_ROOT_CERTS=authority.root.decode(), username="ada", password="lovelace") as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_handshake_by_payload(guarded, authority):
    class Handler(flight.ClientAuthHandler):
        def authenticate(self, outgoing, incoming):
            outgoing.write(flight.BasicAuth("ada", "lovelace").serialize())
            self.token = incoming.read()

        def get_token(self):
            return self.token

    client = guarded.client(tls_root_certs=authority.root)
    client.authenticate(Handler())
    assert client.do_get(flight.Ticket("SELECT 1")).read_all().num_rows == 1


def test_a_closed_session_ends_its_token(calls):
    answers = calls.exchanged("Handshake", [b""], metadata=[basic("ada", "lovelace")])
    token = wire.fields(next(answers))[2][0].decode()
    assert len(list(calls.streamed("DoGet", ONE, metadata=[bearer(token)]))) > 1
    calls.act("CloseSession", metadata=[bearer(token)])
    assert refusal(calls.streamed, "DoGet", ONE, metadata=[bearer(token)])[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", ["machine", "ada"])
def test_bearer(guarded, authority, name):
    client = guarded.client(tls_root_certs=authority.root)
    header = (b"authorization", f"Bearer {TOKENS[name]}".encode())
    options = flight.FlightCallOptions(headers=[header])
    assert client.do_get(flight.Ticket("SELECT 1"), options).read_all().num_rows == 1
    with (
        guarded.connect(
            TLS_ROOT_CERTS=authority.root.decode(), AUTHORIZATION_HEADER=f"Bearer {TOKENS[name]}"
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ([], "no credentials: send"),
        ([basic("ada", "wrong")], "wrong user or password"),
        ([basic("nobody", "lovelace")], "wrong user or password"),
        ([basic("ada", "")], "wrong user or password"),
        ([basic("machine", TOKENS["machine"])], "wrong user or password"),
        ([bearer("no such token")], "unknown token"),
        ([bearer("")], ""),
        ([bearer(sum_of(TOKENS["machine"]))], "unknown token"),
        ([bearer(TOKENS["old"])], "this token expired"),
        ([("authorization", "Basic ????")], ""),
        ([("authorization", "Basic YWRh")], ""),
        ([("authorization", "Digest x")], ""),
        ([("authorization", "")], ""),
        ([("authorization", "Bearer " + "x" * 8000)], "unknown token"),
        ([("auth-token-bin", b"\xff\xfe")], ""),
        ([("auth-token-bin", b"no such token")], "unknown token"),
        ([("cookie", "arrow_flight_session_id=00000000-0000-0000-0000-000000000000")], "no credentials"),
    ],
)
def test_who_is_not_let_in(calls, metadata, says):
    code, details = refusal(calls.streamed, "DoGet", ONE, metadata=metadata)
    assert code == "UNAUTHENTICATED" and says in details
    assert "lovelace" not in details and TOKENS["machine"] not in details


def test_clients_see_that_they_are_not_let_in(guarded, authority):
    client = guarded.client(tls_root_certs=authority.root)
    with pytest.raises(flight.FlightUnauthenticatedError, match="no credentials"):
        client.do_get(flight.Ticket("SELECT 1")).read_all()
    with pytest.raises(flight.FlightUnauthenticatedError, match="wrong user or password"):
        client.authenticate_basic_token("ada", "wrong")
    with pytest.raises(adbc.Error) as caught:
        guarded.connect(TLS_ROOT_CERTS=authority.root.decode(), username="ada", password="wrong").cursor()
    assert caught.value.status_code in (Code.UNAUTHENTICATED, Code.IO)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Handshake", b""),
        ("ListFlights", b""),
        ("GetFlightInfo", by_command(statement("SELECT 1"))),
        ("PollFlightInfo", by_command(statement("SELECT 1"))),
        ("GetSchema", by_command(statement("SELECT 1"))),
        ("DoGet", ONE),
        ("DoPut", wire.flight_data(by_command(packed("CommandStatementUpdate", (1, "CREATE TABLE t (x INT)"))))),
        ("DoExchange", wire.flight_data(by_command(b"SELECT 1"))),
        ("DoAction", wire.action("list_models")),
        ("DoAction", wire.action("CloseSession")),
        ("DoAction", wire.action("no such action")),
        ("ListActions", b""),
    ],
)
def test_every_call_asks_for_credentials(calls, method, request_):
    assert refusal(calls.exchanged, method, [request_])[0] == "UNAUTHENTICATED"


# ---------------------------------------------------------------- users among themselves


def test_users_do_not_see_each_others(calls):
    ada, carol = [basic("ada", "lovelace")], [basic("carol", "lovelace")]
    list(calls.query("CREATE TABLE secret AS SELECT 1 AS x", metadata=ada))
    assert list(calls.query("SELECT x FROM secret", metadata=ada))
    code, details = refusal(calls.query, "SELECT x FROM secret", metadata=carol)
    assert code == "INVALID_ARGUMENT" and "secret" in details
    listed = list(calls.streamed("ListFlights", b"", metadata=carol))
    assert listed and not any(b"secret" in flight for flight in listed)
    assert any(b"secret" in flight for flight in calls.streamed("ListFlights", b"", metadata=ada))

    # Results, prepared statements and sessions belong to their user, even if another user knows their names.
    info = calls.unary("GetFlightInfo", by_command(statement("SELECT x FROM secret")), metadata=ada)
    ticket = wire.fields(wire.fields(wire.fields(info)[3][0])[1][0])[1][0]
    assert refusal(calls.fetch, ticket, metadata=carol)[0] == "NOT_FOUND"
    assert refusal(calls.act, "CancelFlightInfo", message((1, info)), metadata=carol)[0] == "NOT_FOUND"
    assert list(calls.fetch(ticket, metadata=ada))

    prepare = packed("ActionCreatePreparedStatementRequest", (1, "SELECT x FROM secret"))
    (prepared,) = calls.act("CreatePreparedStatement", prepare, metadata=ada)
    handle = wire.fields(wire.fields(prepared)[2][0])[1][0]
    command = packed("CommandPreparedStatementQuery", (1, handle))
    assert refusal(calls.unary, "GetFlightInfo", by_command(command), metadata=carol)[0] == "NOT_FOUND"

    cookie = ("cookie", "arrow_flight_session_id=6f1d0c1e-6f3c-4c80-9d57-0f5f3f5a2b11")
    list(calls.query("CREATE TABLE kept AS SELECT 1 AS x", metadata=[*ada, cookie]))
    assert refusal(calls.query, "SELECT x FROM kept", metadata=[*carol, cookie])[0] == "INVALID_ARGUMENT"
    assert list(calls.query("SELECT x FROM kept", metadata=[*ada, cookie]))


def test_stored_tables_are_their_users(server, authority, credentials, tmp_path):
    one = server(*authority.flags, "--credentials", credentials, "--read-write", "--ingest-directory", tmp_path)
    options = {"TLS_ROOT_CERTS": authority.root.decode(), "password": "lovelace"}
    table = pa.table({"x": [1, 2]})
    with one.connect(username="ada", **options) as ada, ada.cursor() as cursor:
        cursor.adbc_ingest("diary", table)
    with one.connect(username="carol", **options) as carol, carol.cursor() as cursor:
        with pytest.raises(adbc.Error, match="diary"):
            cursor.execute("SELECT * FROM diary")
        cursor.adbc_ingest("diary", table.slice(1))
    with one.connect(username="ada", **options) as ada, ada.cursor() as cursor:
        cursor.execute("SELECT * FROM diary")
        assert cursor.fetch_arrow_table().num_rows == 2


# ---------------------------------------------------------------- reading only

WRITES = [
    "CREATE TABLE t (x INT)",
    "CREATE TABLE t AS SELECT 1 AS x",
    "CREATE VIEW v AS SELECT 1 AS x",
    "CREATE SCHEMA s",
    "CREATE DATABASE d",
    "DROP TABLE dit.tensors",
    "DROP SCHEMA dit",
    "INSERT INTO dit.tensors SELECT * FROM dit.tensors",
    "DELETE FROM dit.tensors",
    "UPDATE dit.tensors SET tensor = 'x'",
    "COPY (SELECT 1) TO '{allowed}/x.parquet' STORED AS PARQUET",
    "CREATE EXTERNAL TABLE e STORED AS SAFETENSORS LOCATION '{model}'",
    "SET datafusion.execution.batch_size = 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{allowed}/x.parquet' STORED AS PARQUET",
    "PREPARE p AS SELECT 1",
]


@pytest.mark.parametrize("sql", WRITES)
def test_a_read_only_server_refuses_statements_that_write(reading, allowed, sql):
    sql = sql.format(allowed=allowed, model=MODEL)
    calls = reading.raw()
    update = wire.flight_data(by_command(packed("CommandStatementUpdate", (1, sql))))
    prepare = packed("ActionCreatePreparedStatementRequest", (1, sql))
    for code, details in (
        refusal(calls.unary, "GetFlightInfo", by_command(statement(sql))),
        refusal(calls.unary, "PollFlightInfo", by_command(statement(sql))),
        refusal(calls.unary, "GetSchema", by_command(statement(sql))),
        refusal(calls.query, sql),
        refusal(calls.fetch, sql.encode()),
        refusal(calls.put, update),
        refusal(calls.act, "CreatePreparedStatement", prepare),
    ):
        assert (code, details) == ("PERMISSION_DENIED", "this server is read-only")
    assert not list(allowed.glob("x.parquet*"))


def test_a_read_only_server_refuses_streams_and_actions_that_write(reading, allowed):
    calls = reading.raw()
    (schema, _), (header, body) = wire.ipc_messages(pa.table({"x": [1]}))
    ingest = packed("CommandStatementIngest", (1, message((1, 1), (2, 1))), (2, "t"))
    for descriptor in (by_path("t"), by_command(ingest)):
        stream = [wire.flight_data(descriptor, schema, b""), wire.flight_data(None, header, body)]
        assert refusal(calls.put, *stream)[0] == "PERMISSION_DENIED"
    out = str(allowed / "never")
    for name, arguments in {
        "quantize_model": {"model": "dit", "output": out},
        "add_model": {"name": "again", "path": str(allowed)},
    }.items():
        assert refusal(calls.act, name, json.dumps(arguments).encode())[0] == "PERMISSION_DENIED"
    assert not (allowed / "never").exists()


def test_a_read_only_server_still_serves(reading):
    calls = reading.raw()
    for sql in ("SELECT count(*) FROM dit.weights", "EXPLAIN SELECT 1", "SHOW TABLES", "DESCRIBE dit.tensors"):
        assert list(calls.query(sql)), sql
    with reading.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tensor FROM dit.tensors WHERE elements = $1", (1408,))
        assert cursor.fetchall() == [("label_embed.weight",)]


@pytest.mark.parametrize(
    ("metadata", "user"),
    [(basic("bob", "builder"), "bob"), (bearer(TOKENS["machine"]), "machine"), (bearer(TOKENS["ada"]), "ada")],
)
def test_users_that_may_not_write(calls, metadata, user):
    for sql in ("CREATE TABLE t (x INT)", "SET datafusion.execution.batch_size = 1"):
        code, details = refusal(calls.query, sql, metadata=[metadata])
        assert (code, details) == ("PERMISSION_DENIED", f"user '{user}' may not write")
    assert list(calls.query("SELECT count(*) FROM dit.weights", metadata=[metadata]))
    assert list(calls.query("CREATE OR REPLACE TABLE fine (x INT)", metadata=[basic("ada", "lovelace")]))


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A directory `inside` that is allowed, and its neighbours that are not."""
    root = tmp_path_factory.mktemp("places")
    inside, outside = root / "inside", root / "outside"
    for place in (inside, outside, root / "inside-not"):
        place.mkdir()
        shutil.copy(MODEL / "model.safetensors", place)
        shutil.copy(MODEL / "calibration.parquet", place)
    (inside / "link").symlink_to(outside)
    (inside / "file-link.safetensors").symlink_to(outside / "model.safetensors")
    (inside / "chain").symlink_to(inside / "link")
    (inside / "sub").mkdir()
    return inside, outside


@pytest.fixture(scope="module")
def bounded(tmp_path_factory, places):
    """A server that may touch one directory."""
    one = start(tmp_path_factory.mktemp("server"), "--read-write", "--allow", places[0])
    yield one
    one.finish()


ESCAPES = [
    "/etc",
    "/etc/passwd",
    "/",
    "/nowhere/at/all",
    "{outside}",
    "{outside}/model.safetensors",
    "{inside}/../outside",
    "{inside}/sub/../../outside/model.safetensors",
    "{inside}/link",
    "{inside}/link/model.safetensors",
    "{inside}/file-link.safetensors",
    "{inside}/chain/model.safetensors",
    "{inside}-not",
    "{inside}/..",
    "../../../../../etc",
    "file:///etc",
    "file://{outside}/model.safetensors",
]


def outsiders(path, code, details, places):
    """Checks a refusal of a path."""
    assert code == "PERMISSION_DENIED", (path, code, details)
    assert "outside the directories this server allows" in details
    for hidden in (*map(str, places), str(places[0].parent), "passwd"):
        assert hidden in path or hidden not in details, (path, details)


@pytest.mark.parametrize("escape", ESCAPES)
def test_reading_outside(bounded, places, escape):
    path = escape.format(inside=places[0], outside=places[1])
    calls = bounded.raw()
    for function in ("tensors", "weights", "quantized", "time_groups", "importance"):
        outsiders(path, *refusal(calls.query, f"SELECT * FROM {function}('{path}')"), places)
    for kind in ("SAFETENSORS", "PARQUET", "CSV"):
        sql = f"CREATE EXTERNAL TABLE e STORED AS {kind} LOCATION '{path}'"
        outsiders(path, *refusal(calls.query, sql), places)
    for name, body in (
        ("add_model", {"name": "out", "path": path}),
        ("quantize_model", {"model": path, "output": str(places[0] / "never")}),
        ("quantize_model", {"model": "dit", "output": str(places[0] / "never"), "calibration": path}),
        ("validate_model", {"original": "dit", "quantized": path}),
    ):
        outsiders(path, *refusal(calls.act, name, json.dumps(body).encode()), places)
    assert not (places[0] / "never").exists()


@pytest.mark.parametrize(
    "escape", [f"{escape}/new" for escape in ESCAPES if "safetensors" not in escape and "passwd" not in escape]
)
def test_writing_outside(bounded, places, escape):
    path = escape.format(inside=places[0], outside=places[1])
    calls = bounded.raw()
    for kind in ("PARQUET", "CSV", "JSON"):
        sql = f"COPY (SELECT 1 AS x) TO '{path}.{kind.lower()}' STORED AS {kind}"
        outsiders(f"{path}.{kind.lower()}", *refusal(calls.query, sql), places)
    body = {"model": "dit", "output": path}
    outsiders(path, *refusal(calls.act, "quantize_model", json.dumps(body).encode()), places)
    assert not list(places[1].glob("new*")) and not list(places[0].parent.glob("new*"))


def test_reading_and_writing_inside(bounded, places):
    inside, _ = places
    calls = bounded.raw()
    for path in (
        inside / "model.safetensors",
        f"{inside}/sub/../model.safetensors",
        f"file://{inside}/model.safetensors",
    ):
        assert list(calls.query(f"SELECT count(*) FROM weights('{path}')")), path
    list(calls.query(f"CREATE EXTERNAL TABLE w STORED AS SAFETENSORS LOCATION '{inside}/model.safetensors'"))
    assert list(calls.query("SELECT count(*) FROM w"))
    list(calls.query(f"COPY (SELECT 1 AS x) TO '{inside}/sub/new.parquet' STORED AS PARQUET"))
    assert (inside / "sub/new.parquet").exists()


def test_a_link_that_is_made_later_is_followed_too(bounded, places):
    inside, outside = places
    moving = inside / "moving"
    moving.mkdir()
    shutil.copy(MODEL / "model.safetensors", moving)
    calls = bounded.raw()
    list(calls.query(f"CREATE EXTERNAL TABLE later STORED AS SAFETENSORS LOCATION '{moving}'"))
    list(calls.query("SELECT count(*) FROM later"))
    shutil.rmtree(moving)
    moving.symlink_to(outside)
    assert refusal(calls.query, f"SELECT * FROM weights('{moving}')")[0] == "PERMISSION_DENIED"
    assert refusal(calls.query, f"COPY (SELECT 1 AS x) TO '{moving}/new.csv' STORED AS CSV")[0] == "PERMISSION_DENIED"


def test_nothing_is_allowed_by_default(server):
    calls = server("--read-write").raw()
    code, details = refusal(calls.query, f"SELECT * FROM weights('{MODEL}')")
    assert code == "PERMISSION_DENIED" and str(MODEL) in details
    # Names of files are no tables either.
    assert refusal(calls.query, f"SELECT * FROM '{MODEL}/calibration.parquet'")[0] in (
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
    )
    # What the operator serves is served.
    assert list(calls.query("SELECT count(*) FROM dit.weights"))


def test_messages_do_not_tell_where_things_are(server, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    one = server("--read-write", "--allow", tmp_path, "--ingest-directory", tmp_path / "tables")
    calls = one.raw()
    code, details = refusal(calls.query, f"SELECT * FROM weights('{tmp_path}/broken.safetensors')")
    assert code == "INVALID_ARGUMENT" and "broken.safetensors" in details
    for sql in ("SELECT * FROM dit.nowhere", "SELECT nothing FROM dit.weights", "DROP TABLE nothing"):
        _, details = refusal(calls.query, sql)
        assert str(tmp_path) not in details and str(MODEL) not in details, details
    info = b"".join(calls.streamed("ListFlights", b""))
    assert str(MODEL).encode() not in info and str(tmp_path).encode() not in info
    everything = b"".join(calls.query("SELECT * FROM dit.tensors")) + b"".join(calls.act("list_models"))
    assert str(MODEL).encode() not in everything


def test_settings_do_not_tell_where_things_are(server, tmp_path):
    one = server("--read-write", "--allow", tmp_path, "--ingest-directory", tmp_path / "tables")
    calls = one.raw()
    options = b"".join(calls.act("GetSessionOptions"))
    assert str(tmp_path).encode() not in options and b"/tmp" not in options
    assert refusal(calls.query, "SET datafusion.runtime.memory_limit = '100G'")[0] == "PERMISSION_DENIED"
    assert refusal(calls.query, "SET datafusion.runtime.temp_directory = '/etc'")[0] == "PERMISSION_DENIED"


# ---------------------------------------------------------------- refusing to start


def refused(*flags, env=None):
    """The message with which a server does not start."""
    done = run("serve", *flags, env=env)
    assert done.returncode not in (0, 101) and done.stdout == "", done.stdout
    assert "panicked" not in done.stderr
    return done.stderr


def test_addresses_that_others_reach_need_protection(server, authority, credentials):
    anywhere = ("--listen", "0.0.0.0:0")
    for flags in ((), ("--credentials", credentials)):
        message_ = refused(*anywhere, *flags)
        assert "0.0.0.0:0" in message_ and "TLS" in message_ and "--insecure" in message_
        assert len(message_.strip().splitlines()) == 1
    message_ = refused(*anywhere, *authority.flags)
    assert "credentials" in message_ and "--insecure" in message_
    for flags in (
        ("--insecure",),
        (*authority.flags, "--credentials", credentials),
        (*authority.flags, "--tls-client-ca", authority.root_file),
    ):
        assert server(*anywhere, *flags, model=False).uri


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--listen", "localhost"], "localhost"),
        (["--listen", "127.0.0.1:99999"], "99999"),
        (["--metrics-listen", "nowhere"], "nowhere"),
        (["--model", "dit"], "NAME=PATH"),
        (["--model", "dit=/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", f"dit={MODEL}", "--model", f"dit={MODEL}"], "dit"),
        (["--model", f"public={MODEL}"], "public"),
        (["--model", f"information_schema={MODEL}"], "information_schema"),
        (["--allow", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--tls-certificate", "/nowhere.pem"], "key"),
        (["--tls-certificate", "/nowhere.pem", "--tls-key", "/nowhere.pem"], "/nowhere.pem"),
        (["--credentials", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--limit", "query_timeout"], "NAME=VALUE"),
        (["--limit", "query_timeout=soon"], "query_timeout"),
        (["--limit", "query_timeout=-1"], "query_timeout"),
        (["--limit", "query_timeout=nan"], "query_timeout"),
        (["--limit", "query_timeout=1e300"], "query_timeout"),
        (["--limit", "concurrent_queries=0"], "concurrent_queries"),
        (["--limit", "concurrent_queries=1.5"], "concurrent_queries"),
        (["--limit", "concurrent_queries=99999999999999999999999"], "concurrent_queries"),
        (["--limit", "querytimeout=1"], "query_timeout"),
        (["--limit", "memory_mb=0"], "memory_mb"),
        (["--log-format", "xml"], "xml"),
        (["--threads", "-1"], "-1"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_flags_that_are_not_understood(flags, says):
    flags = flags if "--listen" in flags else ["--listen", "127.0.0.1:0", *flags]
    assert says in refused(*flags)


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refused("--listen", address)
        assert address in refused("--listen", "127.0.0.1:0", "--metrics-listen", address)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"users": [{"name": "ada", "password": "lovelace"}]}, "ada"),
        ({"users": [{"name": "a b", "password": "lovelace"}]}, "a b"),
        ({"users": [{"name": "ada"}]}, "password"),
        ({"tokens": [{"user": "ci", "sha256": "beef"}]}, "ci"),
        ({"tokens": [{"user": "ci", "sha256": "0" * 64, "expires": "tomorrow"}]}, "expires"),
        ({"user": []}, "user"),
        ({}, ""),
        ([1], ""),
    ],
)
def test_credentials_that_are_not_understood(tmp_path, content, says):
    path = tmp_path / "credentials.yaml"
    path.write_text(json.dumps(content))
    message_ = refused("--listen", "127.0.0.1:0", "--credentials", path)
    assert says in message_ and "credentials.yaml" in message_ and "lovelace" not in message_
