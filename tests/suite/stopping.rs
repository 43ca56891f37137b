//! Statements that the command must outlive: queries that take hours, statements that are too long, and faults of the engine.

#[cfg(target_os = "linux")]
use std::process::{Child, Stdio};
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

use crate::common::{DIGITS, arrow_quant, contains, run};

/// Queries that keep their thread: within a row of many million weights, over weights again and again, in a join.
#[cfg(target_os = "linux")]
fn busy() -> Vec<String> {
    let row = "FROM (SELECT arrow_cast(flatten(array_repeat(range(0, 20480), 1000)), 'List(Float32)') AS v)";
    let each = |function: fn(&str) -> String| {
        let settings = ["2, 32", "2, 64", "2, 128", "4, 32", "4, 64", "4, 128", "8, 32", "8, 64", "8, 128"];
        let schemes = ["affine", "symmetric", "asymmetric"];
        let calls =
            settings.iter().flat_map(|s| schemes.map(|scheme| function(&format!("quantize(v, {s}, '{scheme}')"))));
        format!("SELECT {} AS x {row}", calls.collect::<Vec<_>>().join(" + "))
    };
    let blocks = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"]
        .map(|block_type| format!("sqnr_agg(v, dequantize(quantize(v, '{block_type}', 'reference')))"));
    vec![
        format!("SELECT {} AS x {row}", blocks.join(" + ")),
        each(|quantized| format!("sqnr({quantized})")),
        each(|quantized| format!("sqnr_agg(v, dequantize({quantized}))")),
        "SELECT sum(sqnr(quantize(weights, 2, 32))) FROM d.weights, generate_series(1, 1000000) WHERE weights['dtype'] = 'BF16'"
            .to_string(),
        "SELECT count(*) FROM generate_series(1, 1000000) a(x), generate_series(1, 1000000) b(y) WHERE x + y > 0".to_string(),
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t".to_string(),
    ]
}

/// Waits until a process has computed for so long.
#[cfg(target_os = "linux")]
fn computed(child: &Child, ticks: u64) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
        if fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap() >= ticks {
            return;
        }
        assert!(Instant::now() < end, "it does not compute");
        std::thread::yield_now();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn signals_end_queries_at_once_on_any_number_of_threads() {
    for (sql, (threads, (signal, status))) in
        busy().iter().zip([("1", ("INT", 130)), ("2", ("TERM", 143))].into_iter().cycle())
    {
        let mut command = arrow_quant(&["sql", "--threads", threads, "--model", &format!("d={DIGITS}"), sql]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        computed(&child, 60);
        let started = Instant::now();
        let kill = format!("kill -{signal} {}", child.id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "{sql}: {:?}", started.elapsed());
        assert_eq!(output.status.code(), Some(status), "{sql}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "error: the query was cancelled\n", "{sql}");
    }
}

#[test]
fn long_statements_are_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("statement.sql");
    // An argument cannot be as long.
    let refused = |sql: String| {
        std::fs::write(&file, sql).unwrap();
        run(arrow_quant(&["sql"]).stdin(std::fs::File::open(&file).unwrap())).error()
    };
    for (operator, number) in [(" + 1", 6_000), (" OR true", 64_000), (" || 'a'", 3_000), (" AND NOT true", 3_000)] {
        contains(
            &refused(format!("SELECT 1{}", operator.repeat(number))),
            &["operators, 2000 are allowed", "IN or a join"],
        );
    }
    contains(&refused(vec!["SELECT 1"; 2_600].join(" UNION ALL ")), &["2600 queries, 2000 are allowed"]);
    let nested = format!("SELECT {}1{}", "abs(".repeat(4_000), ")".repeat(4_000));
    contains(&refused(nested), &["it nests 4000 brackets, 40 are allowed"]);
    let joins: Vec<_> = (0..150).map(|i| format!("(SELECT 1) AS a{i}")).collect();
    contains(&refused(format!("SELECT 1 FROM {}", joins.join(", "))), &["more than 100 joins"]);
}

#[test]
fn statements_within_bounds_run() {
    let operators = format!("SELECT 1{} AS n", " + 1".repeat(499));
    assert_eq!(run(arrow_quant(&["sql", "--format", "csv", &operators])).printed(), "n\n500\n");
    let script = [operators.as_str(); 3].join(";");
    assert_eq!(run(arrow_quant(&["sql", "--format", "csv", &script])).printed(), "n\n500\n".repeat(3));
    let names: Vec<_> = (0..5_000).map(|i| format!("'t{i}'")).collect();
    let list = format!("SELECT 't17' IN ({}) AS found", names.join(","));
    assert_eq!(run(arrow_quant(&["sql", "--format", "csv", &list])).printed(), "found\ntrue\n");
}

#[test]
fn a_fault_of_the_engine_is_an_error_of_one_line() {
    let rows = "(SELECT i % 3 AS b, i AS id FROM (SELECT unnest(range(0, 10)) AS i))";
    for sql in [
        "SELECT DISTINCT arrow_cast(NULL, 'Struct()') AS s FROM (VALUES (1), (2))".to_string(),
        format!("SELECT b, first_value(id ORDER BY b, b) FROM {rows} GROUP BY b"),
        format!("SELECT b, avg(id ORDER BY id) FROM {rows} GROUP BY b"),
    ] {
        let mut command = arrow_quant(&["sql", &sql]);
        let message = run(command.env("RUST_BACKTRACE", "1")).error();
        contains(&message, &["the query engine failed: ", "a fault in the query engine", "please report it"]);
        assert!(!message.contains("panicked"), "{message}");
    }
}

#[test]
fn names_of_models_are_found_however_they_are_written() {
    for (name, written) in
        [("Digits", ["digits", "DIGITS", "\"Digits\""]), ("DiT-2.0", ["\"DiT-2.0\"", "\"dit-2.0\"", "\"DIT-2.0\""])]
    {
        for schema in written {
            let sql = format!("SELECT count(*) > 0 AS found FROM {schema}.tensors");
            let model = format!("{name}={DIGITS}");
            let found = run(arrow_quant(&["sql", "--format", "csv", "--model", &model, &sql])).printed();
            assert_eq!(found, "found\ntrue\n", "{schema}");
        }
    }
    let model = format!("a/b={DIGITS}");
    let refused = run(arrow_quant(&["sql", "--model", &model, "SELECT 1"]));
    contains(&refused.stderr, &["'a/b'", "letters, digits, _, - and ."]);
}
