"""Servers to test: real processes of `arrow-quant serve`, each on ports of its own.

The environment's ARROW_QUANT is the command, default target/debug/arrow-quant. At the end of a test its servers must still
run, and must not have panicked.
"""

import json
import math
import os
import re
import selectors
import signal
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

import adbc_driver_flightsql.dbapi
import pyarrow.flight as flight
import pytest
import trustme
from adbc_driver_flightsql import DatabaseOptions

import wire

ROOT = Path(__file__).resolve().parents[2]
COMMAND = os.environ.get("ARROW_QUANT", str(ROOT / "target/debug/arrow-quant"))
MODEL = ROOT / "tests/data/digits-dit"

# A query that never ends by itself, and one that never ends and gives rows all the time.
ENDLESS = "SELECT sum(x) FROM generate_series(1, 1000000000000) AS t(x)"
STREAMING = "SELECT x FROM generate_series(1, 1000000000000) AS t(x)"

# Seconds within which a server starts, ends, or does what is waited for.
DEADLINE = 30


def eventually(condition, what="it"):
    """The first true value of a condition, which is asked until it gives one."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come about in {DEADLINE} s"
        time.sleep(0.005)
    return value


def environment(**variables):
    """The environment of a command: none of our own variables but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARROW_QUANT", "RUST_LOG"))}
    return kept | variables


def run(*arguments, stdin=None, env=None):
    """A command that ends by itself."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(**(env or {})),
    )


class Server:
    """A process of `arrow-quant serve`, once it listens."""

    def __init__(self, arguments, directory, env=None):
        self.log = directory / "stderr.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [COMMAND, "serve", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(**(env or {})),
            )
        self.stopped = False
        try:
            lines = self._read_lines(2 if "--metrics-listen" in arguments else 1)
        except BaseException:
            self.kill()
            raise
        self.lines = lines
        self.uri = lines[0].removeprefix("listening on ")
        assert re.fullmatch(r"grpc(\+tls)?://(127|0)\.0\.0\.[01]:\d+", self.uri), lines
        self.uri = self.uri.replace("//0.0.0.0:", "//127.0.0.1:")
        self.address = self.uri.split("//")[1]
        self.metrics_url = lines[1].removeprefix("metrics on ") if len(lines) == 2 else None
        self._closing = []

    def _read_lines(self, count):
        """The first lines of standard output."""
        text = b""
        end = time.monotonic() + DEADLINE
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while text.count(b"\n") < count:
                assert selector.select(end - time.monotonic()), f"no address in {DEADLINE} s: {self.errors()}"
                part = os.read(self.process.stdout.fileno(), 4096)
                assert part, f"the server did not start: {self.errors()}"
                text += part
        return text.decode().splitlines()

    def errors(self):
        """What was written to standard error."""
        return self.log.read_text()

    # ------------------------------------------------------------ clients

    def client(self, **options):
        """A client of plain Flight."""
        client = flight.FlightClient(self.uri, **options)
        self._closing.append(client)
        return client

    def connect(self, **options):
        """An ADBC connection in a session of its own; options by the names of DatabaseOptions."""
        options = {"WITH_COOKIE_MIDDLEWARE": "true"} | options
        keywords = {getattr(DatabaseOptions, name, None) or name: value for name, value in options.items()}
        keywords = {getattr(name, "value", name): value for name, value in keywords.items()}
        connection = adbc_driver_flightsql.dbapi.connect(self.uri, keywords, autocommit=True)
        self._closing.append(connection)
        return connection

    def raw(self, **options):
        """A client of single messages."""
        client = wire.Client(self.address, **options)
        self._closing.append(client)
        return client

    def close_clients(self):
        """Closes what clients are open."""
        while self._closing:
            try:
                self._closing.pop().close()
            except Exception:  # closed by the test, or the server is gone
                pass

    # ------------------------------------------------------------ metrics

    def metrics(self):
        """Metric, with its labels as in the text, to value."""
        with urllib.request.urlopen(self.metrics_url, timeout=DEADLINE) as response:
            text = response.read().decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def metric(self, name):
        """The value of a metric; the sum, if it has labels."""
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)

    def running(self):
        """Queries that run."""
        return self.metric("arrow_quant_queries_running")

    def idle(self):
        """Waits until no query runs."""
        eventually(lambda: self.running() == 0, "the end of all queries")

    # ------------------------------------------------------------ the end

    def terminate(self):
        """Asks the server to end."""
        self.stopped = True
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """The exit code, once it has ended."""
        self.stopped = True
        return self.process.wait(DEADLINE)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def finish(self):
        """Ends the server, which must be as well as it was at the start."""
        code = self.process.poll()
        self.close_clients()
        self.kill()
        errors = self.errors()
        # Arrow's decoder does at some damaged messages, which ends their stream and nothing else.
        panics = [line for line in errors.splitlines() if "panicked" in line and "/arrow-" not in line]
        assert not panics, "\n".join(panics)
        assert self.stopped or code is None, f"the server ended with {code}: {errors[-4000:]}"


def sparse_model(path, shape):
    """Writes a model of one tensor of zeros, F32, which takes no room on the disk."""
    size = 4 * math.prod(shape)
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return path


def start(directory, *flags, config=None, env=None, model=True):
    """A server with these flags, besides an address, metrics and a model."""
    arguments = list(flags)
    if "--listen" not in arguments and "listen" not in (config or {}):
        arguments += ["--listen", "127.0.0.1:0"]
    if "--metrics-listen" not in arguments:
        arguments += ["--metrics-listen", "127.0.0.1:0"]
    if model:
        arguments += ["--model", f"dit={MODEL}"]
    if config is not None:
        path = directory / "serve.yaml"
        path.write_text(json.dumps(config))  # which is YAML too
        arguments += ["--config", path]
    return Server(arguments, directory, env)


@pytest.fixture
def server(tmp_path_factory):
    """Starts servers: server(*flags, config=dict, env=dict, model=bool)."""
    started = []

    def begin(*flags, **options):
        one = start(tmp_path_factory.mktemp("server"), *flags, **options)
        started.append(one)
        return one

    yield begin
    for one in started:
        one.finish()


def shared(tmp_path_factory, *flags):
    one = start(tmp_path_factory.mktemp("server"), "--threads", "4", *flags)
    yield one
    one.finish()


@pytest.fixture(scope="session")
def allowed(tmp_path_factory):
    """A directory where the shared servers may read and write."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="session")
def writable(tmp_path_factory, allowed):
    """A server that keeps tables in memory."""
    yield from shared(tmp_path_factory, "--read-write", "--allow", allowed, "--allow", MODEL)


@pytest.fixture(scope="session")
def storing(tmp_path_factory):
    """A server that keeps tables as Parquet."""
    yield from shared(tmp_path_factory, "--read-write", "--ingest-directory", tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="session")
def reading(tmp_path_factory, allowed):
    """A server as it is by default: read-only."""
    yield from shared(tmp_path_factory, "--allow", allowed)


@pytest.fixture(autouse=True)
def closed_clients(request):
    """Closes the clients of shared servers after each test."""
    yield
    for name in ("writable", "storing", "reading", "guarded"):
        if name in request.fixturenames:
            request.getfixturevalue(name).close_clients()


# ---------------------------------------------------------------- who may connect


@pytest.fixture(scope="session")
def hashed():
    """The hash of a password, by the command."""
    known = {}

    def of(password):
        if password not in known:
            done = run("serve", "hash-password", stdin=f"{password}\n")
            assert done.returncode == 0, done.stderr
            known[password] = done.stdout.strip()
        return known[password]

    return of


class Authority:
    """An authority of certificates, with files of a server and of clients."""

    def __init__(self, directory):
        self.authority = trustme.CA()
        self.directory = directory
        self.root = self.authority.cert_pem.bytes()
        self.root_file = directory / "root.pem"
        self.root_file.write_bytes(self.root)
        self.certificate, self.key = self.issue("127.0.0.1", "localhost")
        self.certificate_file, self.key_file = directory / "server.pem", directory / "server.key"
        self.certificate_file.write_bytes(self.certificate)
        self.key_file.write_bytes(self.key)
        self.flags = ["--tls-certificate", self.certificate_file, "--tls-key", self.key_file]

    def issue(self, *names):
        """A certificate and its key, PEM."""
        issued = self.authority.issue_cert(*names)
        return b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """An authority that no server trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))
