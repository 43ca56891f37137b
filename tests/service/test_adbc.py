"""The Flight SQL driver of ADBC: what data frames, notebooks and tools connect with."""

import json
import threading

import adbc_driver_manager as adbc
import pyarrow as pa
import pytest
from adbc_driver_flightsql import ConnectionOptions
from adbc_driver_manager import AdbcStatusCode as Code

from conftest import ENDLESS, MODEL, eventually, run

ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "name": pa.array(["a", None, "ccc"]),
        "values": pa.array([[1.5], [], None], pa.list_(pa.float32())),
        "at": pa.array([0, 1_000_000, None], pa.timestamp("us")),
    }
)


@pytest.fixture
def connection(writable):
    return writable.connect()


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


def rows(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchall()


# ---------------------------------------------------------------- queries


def test_query(cursor):
    assert rows(cursor, "SELECT 1 AS one, 'two' AS two, CAST(NULL AS DOUBLE) AS three") == [(1, "two", None)]
    assert [column[0] for column in cursor.description] == ["one", "two", "three"]


def test_weights_are_those_of_the_model(cursor):
    cursor.execute("SELECT tensor, chunk, weights FROM dit.weights ORDER BY tensor, chunk")
    table = cursor.fetch_arrow_table()
    # Views are plain types on the wire.
    assert table.schema.field("tensor").type == pa.string()
    assert table.schema.field("weights").type.field("data").type == pa.binary()
    bytes_of = {}
    for row in table.to_pylist():
        bytes_of[row["tensor"]] = bytes_of.get(row["tensor"], b"") + row["weights"]["data"]
    data = (MODEL / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    assert bytes_of == {name: data[end:][slice(*entry["data_offsets"])] for name, entry in header.items()}


def test_quantize(cursor):
    (mean, count), *rest = rows(
        cursor,
        "SELECT avg(sqnr(weights, dequantize(quantize(weights, 8, 64)))), count(*) FROM dit.weights"
        " WHERE tensor LIKE '%.weight'",
    )
    assert mean > 35 and count > 20 and not rest


def test_an_empty_result_has_its_schema(cursor):
    cursor.execute("SELECT tensor, elements FROM dit.tensors WHERE elements < 0")
    table = cursor.fetch_arrow_table()
    assert table.num_rows == 0 and table.schema.names == ["tensor", "elements"]


def test_a_query_without_columns(cursor):
    cursor.execute("SELECT tensor FROM dit.tensors")
    assert len(cursor.fetchall()) == 52


def test_several_endpoints(cursor):
    partitions, schema = cursor.adbc_execute_partitions("SELECT tensor, chunk, weights FROM dit.weights")
    assert len(partitions) > 1
    seen = []
    for partition in partitions:
        cursor.adbc_read_partition(partition)
        table = cursor.fetch_arrow_table()
        assert table.schema == schema
        seen += zip(table["tensor"].to_pylist(), table["chunk"].to_pylist())
    assert len(seen) == len(set(seen)) == 56


def test_partitions_can_be_read_by_another_connection(writable, cursor):
    partitions, _ = cursor.adbc_execute_partitions("SELECT tensor FROM dit.weights")
    with writable.connect() as other, other.cursor() as reader:
        count = 0
        for partition in partitions:
            reader.adbc_read_partition(partition)
            count += reader.fetch_arrow_table().num_rows
    assert count == 56


def test_a_partition_can_be_read_twice(cursor):
    partitions, _ = cursor.adbc_execute_partitions("SELECT tensor, weights FROM dit.weights")
    tables = []
    for _ in range(2):
        cursor.adbc_read_partition(partitions[0])
        tables.append(cursor.fetch_arrow_table())
    assert tables[0].num_rows > 0 and tables[0] == tables[1]


def test_a_sorted_result_comes_in_order(cursor):
    assert [x for (x,) in rows(cursor, "SELECT x FROM generate_series(1, 30000) AS t(x) ORDER BY x DESC")] == list(
        range(30000, 0, -1)
    )


def test_results_are_cut_into_messages_that_clients_take(writable):
    with writable.connect(WITH_MAX_MSG_SIZE=str(4 << 20)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT x, repeat('x', 1000000) AS text FROM generate_series(1, 20) AS t(x)")
        table = cursor.fetch_arrow_table()
        assert table["x"].to_pylist() == list(range(1, 21))
        assert {len(text) for text in table["text"].to_pylist()} == {1_000_000}
        cursor.execute("SELECT count(*) AS n, arrow_typeof(tensor) AS t, tensor FROM dit.weights GROUP BY tensor")
        assert cursor.fetch_arrow_table().num_rows == 52


def test_errors_say_what_and_where(cursor):
    for sql, says in {
        "SELECT * FRM dit.tensors": "found: FRM|Expected",
        "SELECT nothing FROM dit.tensors": "nothing",
        "SELECT * FROM dit.nowhere": "nowhere",
        "SELECT quantize(weights, 7, 64) FROM dit.weights": "bits",
    }.items():
        with pytest.raises(adbc.Error, match=says) as caught:
            rows(cursor, sql)
        assert caught.value.status_code == Code.INVALID_ARGUMENT, sql
        assert "DataFusionError" not in str(caught.value) and "Plan(" not in str(caught.value)


# ---------------------------------------------------------------- cancelling


def test_cancel_from_another_thread(writable, cursor):
    caught = []

    def query():
        try:
            rows(cursor, ENDLESS)
        except adbc.Error as error:
            caught.append(error)

    thread = threading.Thread(target=query)
    before = writable.running()
    thread.start()
    eventually(lambda: writable.running() > before, "the query")
    cursor.adbc_cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert [error.status_code for error in caught] == [Code.CANCELLED]
    writable.idle()


def test_a_timeout_of_the_client_stops_the_query(writable):
    options = {"adbc.flight.sql.rpc.timeout_seconds.fetch": "0.2"}
    with writable.connect() as connection:
        connection.adbc_connection.set_options(**options)
        with connection.cursor() as cursor, pytest.raises(adbc.Error) as caught:
            rows(cursor, ENDLESS)
    assert caught.value.status_code in (Code.TIMEOUT, Code.CANCELLED)
    writable.idle()


# ---------------------------------------------------------------- parameters


def test_bind_one_row(cursor):
    sql = "SELECT tensor FROM dit.tensors WHERE elements > $1 AND tensor LIKE $2 ORDER BY tensor"
    assert rows(cursor, sql, (98_000, "blocks.0.%")) == [("blocks.0.modulation.weight",)]
    assert rows(cursor, sql, (98_000, "blocks.1.%")) == [("blocks.1.modulation.weight",)]
    assert rows(cursor, sql, (98_000, None)) == []


def test_bind_several_rows(cursor):
    values = pa.table({"elements": pa.array([384, 1408], pa.int64())})
    found = rows(cursor, "SELECT tensor FROM dit.tensors WHERE elements = $1", values)
    assert sorted(found) == [(f"blocks.{i}.qkv.bias",) for i in range(4)] + [("label_embed.weight",)]


def test_parameters_must_be_bound(cursor):
    with pytest.raises(adbc.Error, match="parameter"):
        rows(cursor, "SELECT tensor FROM dit.tensors WHERE elements = $1")


def test_parameters_are_question_marks(cursor):
    count = "SELECT count(*) FROM dit.tensors WHERE "
    every = rows(cursor, count + "true")[0][0]
    name = rows(cursor, "SELECT tensor FROM dit.tensors ORDER BY tensor LIMIT 1")[0][0]
    assert rows(cursor, "SELECT ?", ("x",)) == [("x",)]
    assert rows(cursor, "SELECT ?, ?, '?' -- ?", (1, None)) == [(1, None, "?")]
    assert rows(cursor, count + "tensor = ?", (name,)) == [(1,)]
    assert rows(cursor, count + "tensor = ? AND elements > ?", (name, 0)) == [(1,)]
    assert rows(cursor, count + "tensor IN (?, ?) OR tensor = ?", (name, "no such", None)) == [(1,)]
    assert rows(cursor, count + "tensor = ?", (None,)) == [(0,)]
    assert rows(cursor, count + "elements BETWEEN ? AND ?", (0, 1 << 40)) == [(every,)]
    assert len(rows(cursor, "SELECT tensor FROM dit.tensors LIMIT ? OFFSET ?", (2, 1))) == 2


def test_question_marks_of_prepared_statements(cursor):
    assert cursor.adbc_prepare("SELECT ? + elements FROM dit.tensors").names == ["$1"]


@pytest.mark.parametrize(
    "sql, values, message",
    [
        ("SELECT ?", (1, 2), "1 parameter, 2 are bound"),
        ("SELECT ?, ?", (1,), "2 parameters, 1 is bound"),
        ("SELECT 1", (1,), "0 parameters, 1 is bound"),
        ("SELECT ?", (), "1 parameter, none is bound"),
        ("SELECT $3", (1,), "3 parameters, 1 is bound"),
        ("SELECT ?, $2", (1, 2), "one way"),
    ],
)
def test_as_many_values_are_bound_as_there_are_parameters(cursor, sql, values, message):
    with pytest.raises(adbc.ProgrammingError, match=message):
        rows(cursor, sql, values)


def test_executemany_with_question_marks(cursor):
    cursor.execute("CREATE TABLE many (a BIGINT, b VARCHAR)")
    cursor.executemany("INSERT INTO many VALUES (?, ?)", [(1, "x"), (2, None), (None, "z")])
    cursor.executemany("INSERT INTO many VALUES (?, ?)", [])
    assert rows(cursor, "SELECT * FROM many ORDER BY a") == [(1, "x"), (2, None), (None, "z")]
    with pytest.raises(adbc.ProgrammingError, match="2 parameters, 3 are bound"):
        cursor.executemany("INSERT INTO many VALUES (?, ?)", [(1, "x", 2)])


def test_prepare(cursor):
    sql = "SELECT count(*) FROM dit.tensors WHERE elements > $1 AND dtype = $2"
    schema = cursor.adbc_prepare(sql)
    assert schema.types == [pa.int64(), pa.string()]
    assert [rows(cursor, sql, (n, "BF16")) for n in (0, 98_303, 1_000_000)] == [[(52,)], [(4,)], [(0,)]]


def test_executemany(cursor):
    cursor.execute("CREATE TABLE points (x BIGINT, label VARCHAR)")
    cursor.executemany("INSERT INTO points VALUES ($1, $2)", [(1, "a"), (2, None), (3, "c")])
    assert cursor.rowcount == 3
    cursor.executemany("INSERT INTO points VALUES ($1, $2)", pa.table({"x": [4, 5], "label": ["d", "e"]}))
    assert rows(cursor, "SELECT * FROM points ORDER BY x") == [(1, "a"), (2, None), (3, "c"), (4, "d"), (5, "e")]


def test_statements_that_change_something(cursor):
    assert rows(cursor, "CREATE TABLE squares AS SELECT x, x * x AS y FROM generate_series(1, 4) AS t(x)") == []
    cursor.execute("CREATE VIEW large AS SELECT * FROM squares WHERE y > 5")
    assert rows(cursor, "SELECT x FROM large ORDER BY x") == [(3,), (4,)]
    cursor.adbc_statement.set_sql_query("INSERT INTO squares VALUES (5, 25), (6, 36)")
    assert cursor.adbc_statement.execute_update() == 2
    assert rows(cursor, "SELECT max(y) FROM large") == [(36,)]
    cursor.execute("DROP VIEW large")
    cursor.execute("DROP TABLE squares")
    with pytest.raises(adbc.Error, match="squares"):
        rows(cursor, "SELECT * FROM squares")


# ---------------------------------------------------------------- ingest


@pytest.fixture(params=["memory", "parquet"])
def target(request):
    """A connection to a server that stores tables in memory, or as Parquet."""
    return request.getfixturevalue("writable" if request.param == "memory" else "storing").connect()


def stored(cursor, name):
    cursor.execute(f'SELECT * FROM "{name}"')
    return cursor.fetch_arrow_table().sort_by("id")


def test_ingest_create(target):
    with target.cursor() as cursor:
        assert cursor.adbc_ingest("created", ROWS, mode="create") == 3
        table = stored(cursor, "created")
        assert table.to_pylist() == ROWS.to_pylist()
        assert table.schema.types == ROWS.schema.types
        with pytest.raises(adbc.Error, match="created") as caught:
            cursor.adbc_ingest("created", ROWS, mode="create")
        assert caught.value.status_code == Code.ALREADY_EXISTS
        assert stored(cursor, "created").num_rows == 3


def test_ingest_append(target):
    with target.cursor() as cursor:
        with pytest.raises(adbc.Error, match="appended") as caught:
            cursor.adbc_ingest("appended", ROWS, mode="append")
        assert caught.value.status_code == Code.NOT_FOUND
        cursor.adbc_ingest("appended", ROWS, mode="create")
        assert cursor.adbc_ingest("appended", ROWS.slice(0, 2), mode="append") == 2
        assert stored(cursor, "appended")["id"].to_pylist() == [1, 1, 2, 2, 3]
        with pytest.raises(adbc.Error) as caught:
            cursor.adbc_ingest("appended", pa.table({"other": [1]}), mode="append")
        assert caught.value.status_code in (Code.INVALID_ARGUMENT, Code.ALREADY_EXISTS)
        assert stored(cursor, "appended").num_rows == 5


def test_ingest_replace(target):
    with target.cursor() as cursor:
        for table in (ROWS, ROWS.slice(1), pa.table({"id": [7], "more": [True]})):
            assert cursor.adbc_ingest("replaced", table, mode="replace") == table.num_rows
            assert stored(cursor, "replaced").to_pylist() == table.to_pylist()


def test_ingest_create_append(target):
    with target.cursor() as cursor:
        assert cursor.adbc_ingest("both", ROWS, mode="create_append") == 3
        assert cursor.adbc_ingest("both", ROWS, mode="create_append") == 3
        assert stored(cursor, "both").num_rows == 6


def test_ingest_of_many_batches(target):
    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    batches = (
        pa.record_batch([pa.array(range(i * 1000, i * 1000 + 1000)), pa.array(["x" * 500] * 1000)], schema=schema)
        for i in range(20)
    )
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    with target.cursor() as cursor:
        assert cursor.adbc_ingest("many", reader) == 20_000
        assert rows(cursor, "SELECT count(*), count(DISTINCT id), sum(length(text)) FROM many") == [
            (20_000, 20_000, 10_000_000)
        ]


def test_ingest_of_no_rows(target):
    with target.cursor() as cursor:
        assert cursor.adbc_ingest("nothing", ROWS.to_batches()[0].slice(0, 0)) == 0
        table = stored(cursor, "nothing")
        assert table.num_rows == 0 and table.schema.names == ROWS.schema.names


def test_names_that_need_quotes(target):
    name = 'Läufe "2026"; DROP'
    with target.cursor() as cursor:
        cursor.adbc_ingest(name, ROWS)
        cursor.execute('SELECT count(*) FROM "Läufe ""2026""; DROP"')
        assert cursor.fetchall() == [(3,)]


def test_temporary_tables_end_with_the_session(storing):
    with storing.connect() as one, one.cursor() as cursor:
        cursor.adbc_ingest("passing", ROWS, temporary=True)
        cursor.adbc_ingest("lasting", ROWS)
        assert stored(cursor, "passing").num_rows == 3
        with storing.connect() as other, other.cursor() as second:
            assert stored(second, "lasting").num_rows == 3
            with pytest.raises(adbc.Error, match="passing"):
                stored(second, "passing")


def test_stored_tables_are_there_after_a_restart(server, tmp_path):
    flags = ("--read-write", "--ingest-directory", tmp_path)
    first = server(*flags)
    with first.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("lasting", ROWS)
        cursor.adbc_ingest("lasting", ROWS, mode="append")
        cursor.adbc_ingest("dropped", ROWS)
        cursor.execute('DROP TABLE "dropped"')
    first.terminate()
    assert first.wait() == 0
    with server(*flags).connect() as connection, connection.cursor() as cursor:
        assert stored(cursor, "lasting").to_pylist() == [row for row in ROWS.to_pylist() for _ in range(2)]
        with pytest.raises(adbc.Error, match="dropped"):
            stored(cursor, "dropped")


def test_ingest_into_a_model_is_refused(cursor):
    with pytest.raises(adbc.Error, match="dit"):
        cursor.adbc_ingest("tensors", ROWS, db_schema_name="dit", mode="replace")
    with pytest.raises(adbc.Error, match="dit"):
        cursor.adbc_ingest("more", ROWS, db_schema_name="dit")


# ---------------------------------------------------------------- what there is


def test_get_info(connection):
    info = connection.adbc_get_info()
    assert "ArrowQuant" in info["vendor_name"].replace("-", "").replace(" ", "")
    version = run("--version").stdout.split()[-1]
    assert info["vendor_version"] == version
    assert info["vendor_arrow_version"]


def objects(connection, **filters):
    return connection.adbc_get_objects(**filters).read_all().to_pylist()


def test_get_objects_catalogs(connection):
    catalogs = objects(connection, depth="catalogs")
    assert [catalog["catalog_name"] for catalog in catalogs] == ["datafusion"]
    assert catalogs[0]["catalog_db_schemas"] is None


def test_get_objects_schemas(connection):
    (catalog,) = objects(connection, depth="db_schemas")
    schemas = {schema["db_schema_name"]: schema["db_schema_tables"] for schema in catalog["catalog_db_schemas"]}
    assert {"dit", "public"} <= schemas.keys()
    assert schemas["dit"] is None


def test_get_objects_tables(connection):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE mine AS SELECT 1 AS x")
        cursor.execute("CREATE VIEW seen AS SELECT x FROM mine")
    (catalog,) = objects(connection, depth="tables")
    tables = {
        (schema["db_schema_name"], table["table_name"]): table["table_type"]
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert {("dit", "tensors"), ("dit", "weights"), ("public", "mine"), ("public", "seen")} <= tables.keys()
    assert "VIEW" in tables["public", "seen"] and "VIEW" not in tables["public", "mine"]


def test_get_objects_columns(connection):
    (catalog,) = objects(connection, db_schema_filter="dit", table_name_filter="tensors")
    (schema,) = catalog["catalog_db_schemas"]
    (table,) = schema["db_schema_tables"]
    names = [column["column_name"] for column in table["table_columns"]]
    assert names == ["model", "component", "tensor", "dtype", "shape", "elements", "bytes", "file"]
    assert [column["ordinal_position"] for column in table["table_columns"]] == list(range(1, 9))


def test_get_objects_filters(connection):
    (catalog,) = objects(connection, depth="tables", db_schema_filter="d%", table_name_filter="w_ights")
    (schema,) = catalog["catalog_db_schemas"]
    assert [table["table_name"] for table in schema["db_schema_tables"]] == ["weights"]
    assert objects(connection, depth="tables", catalog_filter="nothing%") == []


def test_get_table_schema(connection):
    schema = connection.adbc_get_table_schema("tensors", db_schema_filter="dit")
    assert pa.types.is_list(schema.field("shape").type)
    assert schema.field("elements").type == pa.int64()
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM dit.tensors")
        assert cursor.fetch_arrow_table().schema.types == schema.types
    with pytest.raises(adbc.Error):
        connection.adbc_get_table_schema("nowhere", db_schema_filter="dit")


def test_get_table_types(connection):
    kinds = connection.adbc_get_table_types()
    assert any("VIEW" in kind for kind in kinds) and any("TABLE" in kind for kind in kinds)


def test_execute_schema_executes_nothing(writable, cursor):
    schema = cursor.adbc_execute_schema(ENDLESS.replace("sum(x)", "sum(x) AS total, 'a' AS a"))
    assert schema.names == ["total", "a"] and schema.types == [pa.int64(), pa.string()]
    with writable.connect() as other, other.cursor() as direct:
        # Without preparing the statement: by GetSchema.
        direct.adbc_statement.set_sql_query("SELECT tensor, weights FROM dit.weights")
        handle = direct.adbc_statement.execute_schema()
        imported = pa.Schema._import_from_c(handle.address)
    assert imported.names == ["tensor", "weights"]


# ---------------------------------------------------------------- polling


def test_incremental_execution(cursor):
    sql = "SELECT count(*) AS n FROM generate_series(1, 2000000) AS t(x) WHERE x % 3 = 0"
    cursor.adbc_statement.set_options(**{adbc.StatementOptions.INCREMENTAL.value: "true"})
    partitions = []
    for _ in range(1000):
        new, schema = cursor.adbc_execute_partitions(sql)
        if not new:
            break
        partitions += new
    assert len(partitions) == 1 and (schema is None or schema.names == ["n"])
    cursor.adbc_read_partition(partitions[0])
    assert cursor.fetchall() == [(666_666,)]


def test_cancel_while_polling(writable, cursor):
    cursor.adbc_statement.set_options(**{adbc.StatementOptions.INCREMENTAL.value: "true"})
    caught = []

    def poll():
        try:
            cursor.adbc_execute_partitions(ENDLESS)
        except adbc.Error as error:
            caught.append(error.status_code)

    before = writable.running()
    thread = threading.Thread(target=poll)
    thread.start()
    eventually(lambda: writable.running() > before, "the query")
    cursor.adbc_cancel()
    thread.join(10)
    assert caught == [Code.CANCELLED]
    # The query is the session's, and ends with it.
    cursor.connection.close()
    writable.idle()


# ---------------------------------------------------------------- sessions


def test_sessions_are_apart(writable):
    with writable.connect() as one, writable.connect() as other:
        with one.cursor() as cursor:
            cursor.execute("CREATE TABLE only_here AS SELECT 1 AS x")
            assert rows(cursor, "SELECT x FROM only_here") == [(1,)]
        with other.cursor() as cursor, pytest.raises(adbc.Error, match="only_here"):
            rows(cursor, "SELECT x FROM only_here")


def test_session_options(connection):
    prefix = ConnectionOptions.OPTION_SESSION_OPTION_PREFIX.value
    low = connection.adbc_connection
    low.set_options(**{prefix + "datafusion.execution.batch_size": "100"})
    assert low.get_option(prefix + "datafusion.execution.batch_size") == "100"
    options = json.loads(low.get_option(ConnectionOptions.OPTION_SESSION_OPTIONS.value))
    assert options["schema"] == "public"
    assert options["datafusion.execution.batch_size"] == "100"
    for name, value in {"no.such.option": "1", "schema": "nowhere", "datafusion.execution.batch_size": "many"}.items():
        with pytest.raises(adbc.Error):
            low.set_options(**{prefix + name: value})


def test_the_default_schema(connection):
    assert connection.adbc_current_catalog == "datafusion"
    assert connection.adbc_current_db_schema == "public"
    connection.adbc_current_db_schema = "dit"
    assert connection.adbc_current_db_schema == "dit"
    with connection.cursor() as cursor:
        assert rows(cursor, "SELECT count(*) FROM tensors") == [(52,)]


def test_closing_a_connection_ends_its_session(writable):
    before = writable.metric("arrow_quant_sessions")
    connection = writable.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE gone AS SELECT 1 AS x")
    assert writable.metric("arrow_quant_sessions") > before
    connection.close()
    assert writable.metric("arrow_quant_sessions") == before


def test_transactions_are_refused(writable):
    with pytest.warns(Warning), pytest.raises(adbc.Error):
        import adbc_driver_flightsql.dbapi

        with adbc_driver_flightsql.dbapi.connect(writable.uri, autocommit=False) as connection:
            connection.adbc_connection.set_autocommit(False)
