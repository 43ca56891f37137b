"""What operators use: health, reflection, metrics, logs, configuration, and the commands for credentials."""

import hashlib
import json
import re
import signal
import urllib.error
import urllib.request
import uuid

import grpc
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conftest import MODEL, STREAMING, eventually, run
from wire import refusal

FLIGHT = "arrow.flight.protocol.FlightService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(reading):
    with grpc.insecure_channel(reading.address) as channel:
        yield channel


# ---------------------------------------------------------------- health and reflection


def test_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", FLIGHT):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_needs_no_credentials(server, tmp_path, hashed):
    file = tmp_path / "credentials.yaml"
    file.write_text(json.dumps({"users": [{"name": "ada", "password": hashed("lovelace")}]}))
    one = server("--credentials", file)
    with grpc.insecure_channel(one.address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
    assert refusal(one.raw().query, "SELECT 1")[0] == "UNAUTHENTICATED"


def test_health_is_told_that_the_server_stops(server):
    one = server()
    client = one.client()
    reader = client.do_get(flight.Ticket("SELECT x, repeat('x', 1000) AS t FROM generate_series(1, 60000) AS t(x)"))
    reader.read_chunk()
    with grpc.insecure_channel(one.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=FLIGHT), timeout=20)
        assert next(watched).status == SERVING
        one.terminate()
        assert next(watched).status == NOT_SERVING
        watched.cancel()
    assert sum(chunk.data.num_rows for chunk in reader) > 50_000
    assert one.wait() == 0


def test_reflection(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {FLIGHT, "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName(FLIGHT)
    assert {method.name for method in service.methods} >= {"DoGet", "DoPut", "DoExchange", "PollFlightInfo"}


# ---------------------------------------------------------------- metrics


def test_metrics_are_what_prometheus_reads(reading):
    list(reading.raw().query("SELECT 1"))
    with urllib.request.urlopen(reading.metrics_url) as response:
        assert response.status == 200
        assert "text" in response.headers["content-type"]
        text = response.read().decode()
    for line in text.splitlines():
        assert re.fullmatch(
            r"# (HELP|TYPE|UNIT|EOF).*|[a-z_]+(\{([a-z_]+=\"[^\"]*\",?)+\})? [-+0-9.eE]+(inf)?", line
        ), line
    for name in (
        "queries_running",
        "queries_queued",
        "sessions",
        "results_open",
        "statements_open",
        "rows_sent_total",
        "bytes_sent_total",
        "query_seconds_count",
        "requests_total",
        "memory_reserved_bytes",
    ):
        assert re.search(rf"^arrow_quant_{name}[ {{]", text, re.M), name


def test_metrics_move(server):
    one = server("--read-write")
    assert one.running() == one.metric("arrow_quant_rows_sent_total") == 0
    client = one.client()
    client.do_get(flight.Ticket("SELECT x FROM generate_series(1, 1000) AS t(x)")).read_all()
    eventually(lambda: one.metric("arrow_quant_queries_total") == 1, "the count of queries")
    assert one.metric("arrow_quant_rows_sent_total") == 1000
    assert 8000 <= one.metric("arrow_quant_bytes_sent_total") < 20_000
    assert one.metric("arrow_quant_query_seconds_count") == 1
    assert one.metrics()['arrow_quant_requests_total{method="DoGet",code="Ok"}'] == 1
    with pytest.raises(Exception, match="nowhere"):
        client.do_get(flight.Ticket("SELECT * FROM nowhere")).read_all()
    assert one.metrics()['arrow_quant_requests_total{method="DoGet",code="InvalidArgument"}'] == 1
    reader = client.do_get(flight.Ticket(STREAMING))
    reader.read_chunk()
    assert one.running() == 1
    reader.cancel()
    one.idle()
    eventually(lambda: one.metrics().get('arrow_quant_queries_total{status="Cancelled"}') == 1, "the count")
    with one.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_prepare("SELECT $1 + 1")
        assert one.metric("arrow_quant_statements_open") == 1


def test_metrics_only_where_they_are(reading, channel):
    base = reading.metrics_url.removesuffix("/metrics")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(base + "/")
    assert caught.value.code == 404


# ---------------------------------------------------------------- logs


def test_logs_as_json(server):
    one = server("--log-format", "json", "--read-write")
    sql = "SELECT count(*) AS logged FROM dit.weights"
    one.client().do_get(flight.Ticket(sql)).read_all()
    text = eventually(lambda: "logged" in one.errors() and one.errors(), "the log")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all("timestamp" in line and "level" in line for line in lines)
    (line,) = [line for line in lines if line.get("sql") == sql]
    assert uuid.UUID(line["query"])
    assert line["user"] == "anonymous" and line["rows"] == 1 and line["code"] == "Ok" and line["seconds"] >= 0


def test_logs_hold_no_secrets(server, tmp_path, hashed):
    hash_ = hashed("lovelace")
    file = tmp_path / "credentials.yaml"
    file.write_text(json.dumps({"users": [{"name": "ada", "password": hash_}]}))
    one = server("--credentials", file, "--log-format", "json", env={"RUST_LOG": "debug"})
    client = one.client()
    header = client.authenticate_basic_token("ada", "lovelace")
    client.do_get(flight.Ticket("SELECT 1"), flight.FlightCallOptions(headers=[header])).read_all()
    with pytest.raises(flight.FlightUnauthenticatedError):
        client.authenticate_basic_token("ada", "love!ace")
    one.terminate()
    assert one.wait() == 0
    token = header[1].decode().removeprefix("Bearer ")
    for secret in ("lovelace", "love!ace", hash_, token):
        assert secret not in one.errors()


def logged(one, *parts):
    """The first line of the log that has all these parts, once it is there."""
    lines = lambda: [line for line in one.errors().splitlines() if all(part in line for part in parts)]
    return eventually(lines, f"a line with {parts}")[0]


def test_logs_tell_what_was_refused_and_to_whom(server, tmp_path, hashed):
    file = tmp_path / "credentials.yaml"
    file.write_text(json.dumps({"users": [{"name": "ada", "password": hashed("lovelace")}]}))
    one = server("--credentials", file)
    assert "models [dit]" in logged(one, "starts:") and "credentials yes" in logged(one, "starts:")
    client = one.client()
    with pytest.raises(flight.FlightUnauthenticatedError):
        client.authenticate_basic_token("ada", "wrong")
    assert "client=127.0.0.1:" in logged(one, "a password is refused", "ada")
    with pytest.raises(flight.FlightUnauthenticatedError):
        client.do_get(flight.Ticket("SELECT 1")).read_all()
    assert "WARN" in logged(one, "refused", "DoGet", "no credentials", "client=127.0.0.1:")
    header = client.authenticate_basic_token("ada", "lovelace")
    with pytest.raises(pa.ArrowInvalid):
        options = flight.FlightCallOptions(headers=[header])
        client.do_get(flight.Ticket("SELECT nothing FROM nowhere"), options).read_all()
    logged(one, "statement not planned", "user=ada", "InvalidArgument", "SELECT nothing FROM nowhere")


def test_logs_tell_how_actions_end(server):
    one = server("--read-write")
    client = one.client()
    list(client.do_action(flight.Action("list_models", b"{}")))
    logged(one, "action ended", "list_models", "code=Ok", "seconds=", "client=127.0.0.1:")
    with pytest.raises(pa.ArrowException):
        list(client.do_action(flight.Action("validate_model", b'{"original": "dit", "quantized": "nowhere"}')))
    assert "code=Ok" not in logged(one, "action ended", "validate_model", "seconds=")


# ---------------------------------------------------------------- files that are read anew


def test_credentials_are_read_anew_on_sighup(server, tmp_path, hashed):
    file = tmp_path / "credentials.yaml"
    users = lambda *names: json.dumps({"users": [{"name": name, "password": hashed("lovelace")} for name in names]})
    file.write_text(users("ada"))
    one = server("--credentials", file)
    client = one.client()
    ada = client.authenticate_basic_token("ada", "lovelace")
    with pytest.raises(flight.FlightUnauthenticatedError):
        client.authenticate_basic_token("bob", "lovelace")

    file.write_text("users: nothing")
    one.process.send_signal(signal.SIGHUP)
    logged(one, "SIGHUP", "stay as they were", "credentials.yaml")
    query = lambda header: client.do_get(flight.Ticket("SELECT 1"), flight.FlightCallOptions(headers=[header])).read_all()
    assert query(ada).num_rows == 1

    file.write_text(users("bob"))
    one.process.send_signal(signal.SIGHUP)
    logged(one, "SIGHUP", "are those of the files now")
    assert query(client.authenticate_basic_token("bob", "lovelace")).num_rows == 1
    with pytest.raises(flight.FlightUnauthenticatedError):
        query(ada)


def test_certificates_are_read_anew_on_sighup(server, tmp_path, authority, stranger):
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(authority.certificate)
    key.write_bytes(authority.key)
    one = server("--tls-certificate", certificate, "--tls-key", key)
    query = lambda root: one.client(tls_root_certs=root).do_get(flight.Ticket("SELECT 1")).read_all()
    assert query(authority.root).num_rows == 1
    certificate.write_bytes(stranger.certificate)
    one.process.send_signal(signal.SIGHUP)
    logged(one, "SIGHUP", "stay as they were")
    key.write_bytes(stranger.key)
    one.process.send_signal(signal.SIGHUP)
    logged(one, "SIGHUP", "are those of the files now")
    assert query(stranger.root).num_rows == 1


def test_the_name_of_this_host_is_an_address(server):
    one = server("--listen", "localhost:0")
    assert one.client().do_get(flight.Ticket("SELECT 1")).read_all().num_rows == 1


def test_text_logs_are_quiet(server):
    one = server()
    one.client().do_get(flight.Ticket("SELECT 1")).read_all()
    assert "\x1b" not in one.errors()
    assert len(one.errors().splitlines()) < 20


# ---------------------------------------------------------------- configuration


def allowed_bytes(server):
    """The limit statement_bytes that a server has."""
    _, details = refusal(server.raw().query, "SELECT 1 -- " + "x" * 4000)
    return int(re.search(r"(\d+) are allowed", details)[1])


def test_flags_go_before_the_environment_before_the_file(server):
    config = {"limits": {"statement_bytes": 2001, "sessions": 11}}
    env = {"ARROW_QUANT_SERVE_LIMIT_STATEMENT_BYTES": "2002"}
    assert allowed_bytes(server(config=config)) == 2001
    assert allowed_bytes(server(config=config, env=env)) == 2002
    assert allowed_bytes(server("--limit", "statement_bytes=2003", config=config, env=env)) == 2003


def test_everything_in_the_file(server, tmp_path, authority):
    tables = tmp_path / "tables"
    tables.mkdir()
    config = {
        "listen": "127.0.0.1:0",
        "models": {"one": str(MODEL), "two": str(MODEL / "model.safetensors")},
        "allow": [str(tmp_path)],
        "ingest_directory": str(tables),
        "read_write": True,
        "tls": {"certificate": str(authority.certificate_file), "key": str(authority.key_file)},
        "threads": 2,
        "log_format": "json",
        "limits": {"query_timeout": 12.5, "memory_mb": 100, "spill_mb": 100, "concurrent_queries": 3},
    }
    one = server(config=config, model=False)
    assert one.uri.startswith("grpc+tls://")
    client = one.client(tls_root_certs=authority.root)
    sql = "SELECT count(*) AS n FROM one.tensors a JOIN two.tensors b USING (tensor)"
    assert client.do_get(flight.Ticket(sql)).read_all().to_pylist() == [{"n": 52}]
    client.do_get(flight.Ticket("CREATE TABLE t AS SELECT 1 AS x")).read_all()


def test_everything_in_the_environment(server, tmp_path):
    env = {
        "ARROW_QUANT_SERVE_READ_WRITE": "true",
        "ARROW_QUANT_SERVE_INGEST_DIRECTORY": str(tmp_path),
        "ARROW_QUANT_SERVE_LOG_FORMAT": "json",
        "ARROW_QUANT_SERVE_THREADS": "2",
        "ARROW_QUANT_SERVE_LIMIT_QUERY_TIMEOUT": "12.5",
    }
    one = server(env=env)
    list(one.raw().query("CREATE TABLE t AS SELECT 1 AS x"))
    eventually(lambda: '"level"' in one.errors(), "logs as JSON")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("listne: 127.0.0.1:0", "listen"),
        ("limits: {query_timeuot: 5}", "query_timeout"),
        ("limits: {query_timeout: soon}", "query_timeout"),
        ("listen: 7", "listen"),
        ("tls: {certificate: /nowhere.pem}", "key"),
        ("models: [a]", "models"),
        ("log_format: xml", "log_format"),
        ("listen: [", "serve.yaml"),
        ("- 1", "serve.yaml"),
    ],
)
def test_files_that_are_not_understood(tmp_path, config, says):
    path = tmp_path / "serve.yaml"
    path.write_text(config)
    done = run("serve", "--config", path)
    assert done.returncode not in (0, 101) and done.stdout == ""
    assert says in done.stderr and len(done.stderr.strip().splitlines()) <= 6, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("READ_WRITE", "perhaps"),
        ("THREADS", "many"),
        ("LISTEN", "here"),
        ("LIMIT_QUERY_TIMEOUT", "soon"),
        ("LIMIT_SESIONS", "3"),
    ],
)
def test_variables_that_are_not_understood(name, value):
    done = run("serve", "--metrics-listen", "127.0.0.1:0", env={f"ARROW_QUANT_SERVE_{name}": value})
    assert done.returncode not in (0, 101) and done.stdout == ""
    assert f"ARROW_QUANT_SERVE_{name}" in done.stderr


def test_an_empty_file_is_the_defaults(server):
    assert server(config={}).uri


# ---------------------------------------------------------------- what is printed


def test_the_lines_that_are_printed(reading):
    address, metrics = reading.lines
    assert re.fullmatch(r"listening on grpc://127\.0\.0\.1:\d+", address)
    assert re.fullmatch(r"metrics on http://127\.0\.0\.1:\d+/metrics", metrics)


def test_hash_password():
    first, second = (run("serve", "hash-password", stdin="lovelace\n") for _ in range(2))
    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+\n", done.stdout)
    assert first.stdout != second.stdout
    assert run("serve", "hash-password", stdin="").returncode != 0


def test_new_token(server, tmp_path):
    done = run("serve", "new-token")
    assert done.returncode == 0, done.stderr
    (sha256,) = re.findall(r"\b[0-9a-f]{64}\b", done.stdout)
    tokens = [word for word in re.findall(r"\S+", done.stdout) if hashlib.sha256(word.encode()).hexdigest() == sha256]
    assert len(tokens) == 1 and run("serve", "new-token").stdout != done.stdout
    file = tmp_path / "credentials.yaml"
    file.write_text(json.dumps({"tokens": [{"user": "ci", "sha256": sha256}]}))
    calls = server("--credentials", file).raw(metadata=[("authorization", f"Bearer {tokens[0]}")])
    assert list(calls.query("SELECT 1"))


def test_help():
    done = run("serve", "--help")
    assert done.returncode == 0
    for flag in (
        "--listen",
        "--model",
        "--config",
        "--allow",
        "--read-write",
        "--credentials",
        "--tls-certificate",
        "--limit",
    ):
        assert flag in done.stdout
