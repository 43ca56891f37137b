#!/usr/bin/env python3
"""Two hundred clients at once for two minutes: what they are told, how long the least query takes, and what is left behind.

    soak.py [SECONDS] [CLIENTS]

Starts a server of the example model; ARROW_QUANT is the command [default: target/release/arrow-quant]. Clients query, prepare
statements, exchange streams, cancel and leave in the middle of results, and some of their processes are killed. Each answer is
checked. Anything but an answer or a refusal by a limit is a failure. Before, a short run of the same warms the server up; after
both, sessions and results expire, and memory and handles must be what they were. Status 1 if something does not hold.

Needs pyarrow, grpcio, adbc-driver-flightsql and adbc-driver-manager.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
from adbc_driver_flightsql import DatabaseOptions, dbapi

from common import print_table

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests/service"))

import wire  # noqa: E402

COMMAND = os.environ.get("ARROW_QUANT", str(ROOT / "target/release/arrow-quant"))
MODEL = ROOT / "tests/data/digits-dit"

PROCESSES = 4
WARM_UP_SECONDS = 15
# Seconds that a call may take; those that wait for a place are refused after 30.
PATIENCE = 90
# Seconds that sessions and results are kept unused: longer than a client waits, or it would lose what it has.
LIFETIME = 40
# A client process that is killed, again and again: its streams, and how long they have.
VICTIM_STREAMS = 3
VICTIM_SECONDS = 1.0

# What may be left behind.
MEMORY_MB = 64
HANDLES = 2

LIMITS = "concurrent_queries|queue_timeout|sessions|statements|memory_mb|spill_mb"
STREAMING = "SELECT x FROM generate_series(1, 1000000000000) AS t(x)"
GAUGES = ["queries_running", "queries_queued", "sessions", "results_open", "statements_open", "memory_reserved_bytes"]


# ---------------------------------------------------------------- what clients do


class Client:
    """One client, with a session of its own."""

    def __init__(self, uri, seed):
        self.uri = uri
        self.random = random.Random(seed)
        self.client = flight.connect(uri)
        token = self.client.authenticate_basic_token(f"client{seed}", "")
        self.options = flight.FlightCallOptions(timeout=PATIENCE, headers=[token])

    def fetch(self, sql, client=None):
        return (client or self.client).do_get(flight.Ticket(sql), self.options)

    def trivial(self):
        assert self.fetch("SELECT 1 AS x").read_all().to_pylist() == [{"x": 1}]

    def quantize(self):
        block = self.random.randrange(4)
        sql = f"""SELECT count(*) AS n, min(sqnr(weights, dequantize(quantize(weights, 8, 64)))) AS db
                  FROM dit.weights WHERE tensor LIKE 'blocks.{block}.%.weight'"""
        (row,) = self.fetch(sql).read_all().to_pylist()
        assert row["n"] > 0 and row["db"] > 30, row

    def partitions(self):
        info = self.client.get_flight_info(flight.FlightDescriptor.for_path("dit", "weights"), self.options)
        rows = sum(self.client.do_get(end.ticket, self.options).read_all().num_rows for end in info.endpoints)
        assert rows == 56, rows

    def prepared(self):
        options = {DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true"}
        for call in (DatabaseOptions.TIMEOUT_FETCH, DatabaseOptions.TIMEOUT_QUERY, DatabaseOptions.TIMEOUT_UPDATE):
            options[call.value] = str(PATIENCE)
        with dbapi.connect(self.uri, options, autocommit=True) as connection, connection.cursor() as cursor:
            for elements, found in ((1408, [("label_embed.weight",)]), (1, [])):
                cursor.execute("SELECT tensor FROM dit.tensors WHERE elements = $1", (elements,))
                rows = cursor.fetchall()
                assert rows == found, rows

    def exchange(self):
        count = self.random.randrange(1, 5)
        values = pa.array([[float(i) for i in range(128)]] * 8, pa.list_(pa.float32()))
        batch = pa.record_batch({"tensor": ["t"] * 8, "weights": values})
        sql = "SELECT tensor, quantize(weights, 4, 128) AS q FROM input"
        writer, reader = self.client.do_exchange(flight.FlightDescriptor.for_command(sql), self.options)
        try:
            writer.begin(batch.schema)
            for _ in range(count):
                writer.write_batch(batch)
            writer.done_writing()
            rows = reader.read_all().num_rows
        finally:
            # The reason of a failure is what the reader said; this would repeat it.
            try:
                writer.close()
            except Exception:
                pass
        assert rows == 8 * count, rows

    def cancel(self):
        """By the call, or by the action from another call."""
        info = self.client.get_flight_info(flight.FlightDescriptor.for_command(STREAMING), self.options)
        reader = self.client.do_get(info.endpoints[0].ticket, self.options)
        reader.read_chunk()
        if self.random.random() < 0.5:
            reader.cancel()
        else:
            body = wire.message((1, info.serialize()))
            list(self.client.do_action(flight.Action("CancelFlightInfo", body), self.options))
        try:
            while True:
                reader.read_chunk()
        except (flight.FlightCancelledError, pa.ArrowCancelled):
            return
        except StopIteration:
            raise AssertionError("a cancelled stream ended as if it were complete") from None

    def leave(self):
        """Closes a connection in the middle of a result."""
        other = flight.connect(self.uri)
        reader = self.fetch(STREAMING, other)
        reader.read_chunk()
        del reader
        other.close()

    OPERATIONS = {trivial: 40, quantize: 12, partitions: 12, prepared: 12, exchange: 12, cancel: 6, leave: 6}

    def run(self, end, told):
        """Does one thing after the other until the end, and says of each how it went."""
        operations, weights = zip(*self.OPERATIONS.items())
        while time.monotonic() < end:
            (operation,) = self.random.choices(operations, weights)
            start = time.perf_counter()
            try:
                operation(self)
                outcome = "answered"
            except Exception as error:
                outcome = refusal(error)
            told(operation.__name__, outcome, time.perf_counter() - start)


def refusal(error):
    """The limit that refused, or else what went wrong."""
    limit = re.search(rf"\b({LIMITS}):", str(error))
    return f"refused: {limit[1]}" if limit else f"failed: {type(error).__name__}: {str(error)[:300]}"


def worker(uri, seconds, first, count):
    """Clients in threads, as a process; prints what they were told."""
    outcomes, latencies, lock = Counter(), [], threading.Lock()
    end = time.monotonic() + float(seconds)

    def told(operation, outcome, taken):
        with lock:
            outcomes[operation, outcome] += 1
            if operation == "trivial" and outcome == "answered":
                latencies.append(1000 * taken)

    def client(seed):
        try:
            Client(uri, seed).run(end, told)
        except Exception as error:
            told("connect", refusal(error), 0)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(int(first), int(first) + int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"outcomes": [[*key, number] for key, number in outcomes.items()], "latencies": latencies}))


def victim(uri):
    """Streams that are read until somebody kills this process."""

    def stream():
        for _ in flight.connect(uri).do_get(flight.Ticket(STREAMING)):
            pass

    for _ in range(VICTIM_STREAMS):
        threading.Thread(target=stream, daemon=True).start()
    print("reading", flush=True)
    time.sleep(PATIENCE)


# ---------------------------------------------------------------- the server


class Server:
    def __init__(self, log):
        flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--read-write", "--model", f"dit={MODEL}"]
        for limit in ("session_lifetime", "result_lifetime"):
            flags += ["--limit", f"{limit}={LIFETIME}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ARROW_QUANT")}
        self.process = subprocess.Popen(
            [COMMAND, "serve", *flags], stdout=subprocess.PIPE, stderr=log, text=True, env=environment | {"RUST_LOG": "warn"}
        )
        self.uri = self.process.stdout.readline().strip().removeprefix("listening on ")
        self.metrics_url = self.process.stdout.readline().strip().removeprefix("metrics on ")
        if not self.metrics_url:
            raise SystemExit(f"{COMMAND} did not start")

    def gauges(self):
        with urllib.request.urlopen(self.metrics_url, timeout=PATIENCE) as response:
            lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, value in lines}
        return {name: found[f"arrow_quant_{name}"] for name in GAUGES}

    def resources(self):
        """Memory in MB and open handles."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith("kB")}
        handles = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {
            "anonymous MB": 1024 * (kilobytes["RssAnon"] + kilobytes["RssShmem"]) / 1e6,
            "resident MB": 1024 * kilobytes["VmRSS"] / 1e6,
            "handles": handles,
        }

    def settle(self, handles=0):
        """Everything that is left once nobody is there and lifetimes are over."""
        end = time.monotonic() + 2 * LIFETIME + 30
        while time.monotonic() < end:
            gauges, resources = self.gauges(), self.resources()
            if not any(gauges.values()) and (not handles or resources["handles"] <= handles):
                break
            time.sleep(1)
        return gauges | resources


def load(server, seconds, clients):
    """What clients were told, and the milliseconds of the trivial query; how many processes were killed meanwhile."""
    outcomes, latencies = Counter(), []
    workers, first = [], 0
    for number in range(PROCESSES):
        count = clients // PROCESSES + (number < clients % PROCESSES)
        command = [sys.executable, __file__, "--worker", server.uri, seconds, first, count]
        workers.append(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True))
        first += count
    killed, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        process = subprocess.Popen([sys.executable, __file__, "--victim", server.uri], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(VICTIM_SECONDS)
        process.kill()
        process.wait()
        process.stdout.close()
        killed += 1
        time.sleep(min(4 * VICTIM_SECONDS, max(0, end - time.monotonic())))
    for process in workers:
        text, _ = process.communicate()
        if process.returncode != 0:
            outcomes["connect", f"failed: a process of clients ended with {process.returncode}"] += 1
            continue
        found = json.loads(text)
        outcomes.update({(operation, outcome): number for operation, outcome, number in found["outcomes"]})
        latencies += found["latencies"]
    return outcomes, sorted(latencies), killed


def percentile(values, percent):
    return f"{values[min(len(values) - 1, len(values) * percent // 100)]:.1f}" if values else "-"


def main(seconds="120", clients="200"):
    seconds, clients = float(seconds), int(clients)
    with tempfile.TemporaryFile("w+") as log:
        server = Server(log)
        try:
            holds = measure(server, seconds, clients)
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
            status = server.process.wait(PATIENCE)
        finally:
            server.process.kill()
            server.process.wait()
        log.seek(0)
        text = log.read()
    if status != 0 or "panic" in text:
        print(f"The server ended with status {status}.\n{text[-4000:]}")
        holds = False
    sys.exit(not holds)


def measure(server, seconds, clients):
    alone = Client(server.uri, clients)
    idle = []
    for _ in range(500):
        start = time.perf_counter()
        alone.trivial()
        idle.append(1000 * (time.perf_counter() - start))
    idle.sort()
    del alone
    load(server, WARM_UP_SECONDS, clients)
    before = server.settle()
    outcomes, latencies, killed = load(server, seconds, clients)
    after = server.settle(before["handles"] + HANDLES)

    print(f"{clients} clients for {seconds:.0f} s, {killed} processes with {VICTIM_STREAMS} streams each killed meanwhile")
    print()
    operations = sorted({operation for operation, _ in outcomes})
    count = lambda operation, kind: sum(n for (o, k), n in outcomes.items() if o == operation and k.startswith(kind))
    kinds = ("answered", "refused", "failed")
    print_table(["operation", *kinds], [[operation, *(count(operation, kind) for kind in kinds)] for operation in operations])
    refused = Counter()
    for (_, outcome), number in outcomes.items():
        if outcome.startswith("refused: "):
            refused[outcome.removeprefix("refused: ")] += number
    if refused:
        print_table(["refused by", "times"], sorted(refused.items()))
    print_table(
        ["`SELECT 1`", "calls", "p50 ms", "p99 ms"],
        [[name, len(values), percentile(values, 50), percentile(values, 99)] for name, values in (("idle", idle), ("under load", latencies))],
    )
    rows, holds = [], not any(outcome.startswith("failed") for _, outcome in outcomes)
    for name in before:
        margin = MEMORY_MB if name.endswith("MB") else HANDLES if name == "handles" else 0
        kept = after[name] - before[name] <= margin
        holds &= kept
        rows.append([name, f"{before[name]:.0f}", f"{after[name]:.0f}", margin, "yes" if kept else "no"])
    print_table(["left behind", "before", "after", "may grow by", "holds"], rows)
    for (operation, outcome), number in sorted(outcomes.items()):
        if outcome.startswith("failed"):
            print(f"{operation}, {number} times: {outcome}")
    return holds


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        worker(*arguments[1:])
    elif arguments[:1] == ["--victim"]:
        victim(*arguments[1:])
    elif len(arguments) <= 2 and not any(argument.startswith("-") for argument in arguments):
        main(*arguments)
    else:
        sys.exit(__doc__)
