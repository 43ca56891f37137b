//! What the server and DataFusion's SQL can do, as drivers ask for it: each fact in the type that drivers expect.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::compute::can_cast_types;
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, TimeUnit};
use arrow_flight::sql::metadata::SqlInfoDataBuilder;
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType, SqlSupportedSubqueries,
    SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert, SqlTransactionIsolationLevel, SupportedSqlGrammar,
};
use datafusion::common::Result;
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::keywords::{
    RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_IDENTIFIER, RESERVED_FOR_TABLE_ALIAS, RESERVED_FOR_TABLE_FACTOR,
};

use super::failed;

/// The facts that are asked for, all if none is named; what is not known is left out.
pub(super) fn sql_info(ctx: &SessionContext, read_only: bool, command: CommandGetSqlInfo) -> Result<RecordBatch> {
    let mut builder = SqlInfoDataBuilder::new();
    add_server(&mut builder, read_only);
    add_names(&mut builder, &ctx.state());
    add_abilities(&mut builder, read_only);
    add_sets(&mut builder);
    add_limits(&mut builder);
    let facts = builder.build().map_err(failed)?;

    let all = command.info.is_empty();
    let is_known = |info: &u32| i32::try_from(*info).is_ok_and(|info| SqlInfo::try_from(info).is_ok());
    let wanted: BTreeSet<u32> = command.info.into_iter().filter(is_known).collect();
    if wanted.is_empty() && !all {
        return Ok(RecordBatch::new_empty(facts.schema()));
    }
    facts.record_batch(wanted).map_err(failed)
}

/// What the server is and speaks. There are no Substrait versions, as it does not understand Substrait.
fn add_server(builder: &mut SqlInfoDataBuilder, read_only: bool) {
    for (info, value) in [
        (SqlInfo::FlightSqlServerName, "ArrowQuant"),
        (SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION")),
        (SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION),
    ] {
        builder.append(info, value);
    }
    for (info, value) in [
        (SqlInfo::FlightSqlServerReadOnly, read_only),
        (SqlInfo::FlightSqlServerSql, true),
        (SqlInfo::FlightSqlServerSubstrait, false),
        (SqlInfo::FlightSqlServerCancel, true),
        (SqlInfo::FlightSqlServerBulkIngestion, !read_only),
        (SqlInfo::FlightSqlServerIngestTransactionsSupported, false),
    ] {
        builder.append(info, value);
    }
    for (info, value) in [
        (SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32),
        // Milliseconds; 0 is none.
        (SqlInfo::FlightSqlServerStatementTimeout, 0),
        (SqlInfo::FlightSqlServerTransactionTimeout, 0),
    ] {
        builder.append(info, value);
    }
}

/// Identifiers, keywords, functions, and what things are called.
fn add_names(builder: &mut SqlInfoDataBuilder, state: &SessionState) {
    for (info, value) in [
        (SqlInfo::SqlIdentifierQuoteChar, "\""),
        (SqlInfo::SqlSearchStringEscape, "\\"),
        (SqlInfo::SqlExtraNameCharacters, "$#"),
        (SqlInfo::SqlSchemaTerm, "schema"),
        (SqlInfo::SqlProcedureTerm, ""),
        (SqlInfo::SqlCatalogTerm, "catalog"),
    ] {
        builder.append(info, value);
    }
    let options = &state.config_options().sql_parser;
    let unquoted = if options.enable_ident_normalization {
        SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase
    } else {
        SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown
    };
    builder.append(SqlInfo::SqlIdentifierCase, unquoted as i32);
    // They are kept as they are, for which there is no value.
    let quoted = SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown;
    builder.append(SqlInfo::SqlQuotedIdentifierCase, quoted as i32);
    let nulls = match options.default_null_ordering.as_str() {
        "nulls_min" => SqlNullOrdering::SqlNullsSortedLow,
        "nulls_first" => SqlNullOrdering::SqlNullsSortedAtStart,
        "nulls_last" => SqlNullOrdering::SqlNullsSortedAtEnd,
        _ => SqlNullOrdering::SqlNullsSortedHigh,
    };
    builder.append(SqlInfo::SqlNullOrdering, nulls as i32);
    builder.append(SqlInfo::SqlKeywords, keywords());
    for (info, functions) in functions(state) {
        builder.append(info, functions);
    }
}

/// The words that are no names unless they are quoted.
fn keywords() -> Vec<String> {
    let reserved =
        [RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_IDENTIFIER, RESERVED_FOR_TABLE_ALIAS, RESERVED_FOR_TABLE_FACTOR];
    let words: BTreeSet<String> = reserved.into_iter().flatten().map(ToString::to_string).collect();
    words.into_iter().collect()
}

/// The scalar functions by their section in DataFusion's reference; those of no other kind are system functions.
fn functions(state: &SessionState) -> [(SqlInfo, Vec<String>); 4] {
    let [mut numeric, mut string, mut datetime, mut system] = <[Vec<String>; 4]>::default();
    for (name, function) in state.scalar_functions() {
        let section = function.documentation().map(|documentation| documentation.doc_section.label);
        let kind = match section {
            Some("Math Functions") => &mut numeric,
            Some("String Functions" | "Binary String Functions" | "Regular Expression Functions") => &mut string,
            Some("Time and Date Functions") => &mut datetime,
            _ => &mut system,
        };
        kind.push(name.clone());
    }
    [
        (SqlInfo::SqlNumericFunctions, numeric),
        (SqlInfo::SqlStringFunctions, string),
        (SqlInfo::SqlDatetimeFunctions, datetime),
        (SqlInfo::SqlSystemFunctions, system),
    ]
    .map(|(info, mut names)| {
        names.sort_unstable();
        (info, names)
    })
}

fn add_abilities(builder: &mut SqlInfoDataBuilder, read_only: bool) {
    for (info, value) in [
        // CREATE DATABASE is there, DROP DATABASE is not.
        (SqlInfo::SqlDdlCatalog, false),
        (SqlInfo::SqlDdlSchema, !read_only),
        (SqlInfo::SqlDdlTable, !read_only),
        (SqlInfo::SqlAllTablesAreSelectable, true),
        (SqlInfo::SqlSupportsColumnAliasing, true),
        (SqlInfo::SqlNullPlusNullIsNull, true),
        (SqlInfo::SqlSupportsTableCorrelationNames, true),
        // Whether they must differ from the names of tables.
        (SqlInfo::SqlSupportsDifferentTableCorrelationNames, false),
        (SqlInfo::SqlSupportsExpressionsInOrderBy, true),
        (SqlInfo::SqlSupportsOrderByUnrelated, true),
        // No character escapes but the backslash, with which patterns do without the clause.
        (SqlInfo::SqlSupportsLikeEscapeClause, false),
        (SqlInfo::SqlSupportsNonNullableColumns, true),
        // Keys can be declared, but nothing enforces them.
        (SqlInfo::SqlSupportsIntegrityEnhancementFacility, false),
        (SqlInfo::SqlCatalogAtStart, true),
        // FOR UPDATE is understood, but locks nothing.
        (SqlInfo::SqlSelectForUpdateSupported, false),
        (SqlInfo::SqlStoredProceduresSupported, false),
        (SqlInfo::SqlCorrelatedSubqueriesSupported, true),
        (SqlInfo::SqlMaxRowSizeIncludesBlobs, true),
        (SqlInfo::SqlTransactionsSupported, false),
        (SqlInfo::SqlDataDefinitionCausesTransactionCommit, false),
        (SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false),
        // An update runs once for each row of values bound to it.
        (SqlInfo::SqlBatchUpdatesSupported, !read_only),
        (SqlInfo::SqlSavepointsSupported, false),
        (SqlInfo::SqlNamedParametersSupported, false),
        (SqlInfo::SqlLocatorsUpdateCopy, false),
        (SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false),
    ] {
        builder.append(info, value);
    }
}

/// Sets of bits, each named by its number, and the conversions.
fn add_sets(builder: &mut SqlInfoDataBuilder) {
    let group_by =
        bits(&[SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32]);
    // The specification calls it a number, but the drivers of JDBC and ODBC read bits.
    let outer_joins = bits(&[
        SqlOuterJoinsSupportLevel::SqlLimitedOuterJoins as i32,
        SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32,
    ]);
    let subqueries = bits(&[
        SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
        SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
        SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        SqlSupportedSubqueries::SqlSubqueriesInQuantifieds as i32,
    ]);
    let unions = bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]);
    // The bit of ANSI92_ENTRY_SQL. More asks for cursors and grants.
    let entry_sql = bits(&[0]);
    let forward_only = bits(&[SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32]);
    let read = bits(&[SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]);
    for (info, value) in [
        (SqlInfo::SqlSupportedGroupBy, group_by),
        (SqlInfo::SqlSupportedGrammar, bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32])),
        (SqlInfo::SqlAnsi92SupportedLevel, entry_sql),
        (SqlInfo::SqlOuterJoinsSupportLevel, outer_joins),
        (SqlInfo::SqlSupportedSubqueries, subqueries),
        (SqlInfo::SqlSupportedUnions, unions),
        (
            SqlInfo::SqlSupportedTransactionsIsolationLevels,
            bits(&[SqlTransactionIsolationLevel::SqlTransactionNone as i32]),
        ),
        (SqlInfo::SqlSupportedResultSetTypes, forward_only),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, read),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, 0),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
        (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
        // There are no procedures, indexes, privileges or cursors.
        (SqlInfo::SqlSchemasSupportedActions, 0),
        (SqlInfo::SqlCatalogsSupportedActions, 0),
        (SqlInfo::SqlSupportedPositionedCommands, 0),
    ] {
        builder.append(info, value);
    }
    builder.append(SqlInfo::SqlSupportsConvert, conversions());
}

/// The bits of these numbers.
fn bits(numbers: &[i32]) -> i32 {
    numbers.iter().fold(0, |bits, number| bits | (1_i32 << number))
}

/// What CAST converts each type to.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    let types = [
        (SqlSupportsConvert::SqlConvertBigint, DataType::Int64),
        (SqlSupportsConvert::SqlConvertBinary, DataType::Binary),
        (SqlSupportsConvert::SqlConvertBit, DataType::Boolean),
        (SqlSupportsConvert::SqlConvertChar, DataType::Utf8View),
        (SqlSupportsConvert::SqlConvertDate, DataType::Date32),
        (SqlSupportsConvert::SqlConvertDecimal, DataType::Decimal128(DECIMAL128_MAX_PRECISION, 10)),
        (SqlSupportsConvert::SqlConvertFloat, DataType::Float32),
        (SqlSupportsConvert::SqlConvertInteger, DataType::Int32),
        (SqlSupportsConvert::SqlConvertLongvarchar, DataType::Utf8View),
        (SqlSupportsConvert::SqlConvertNumeric, DataType::Decimal128(DECIMAL128_MAX_PRECISION, 10)),
        (SqlSupportsConvert::SqlConvertReal, DataType::Float32),
        (SqlSupportsConvert::SqlConvertSmallint, DataType::Int16),
        (SqlSupportsConvert::SqlConvertTime, DataType::Time64(TimeUnit::Nanosecond)),
        (SqlSupportsConvert::SqlConvertTimestamp, DataType::Timestamp(TimeUnit::Nanosecond, None)),
        (SqlSupportsConvert::SqlConvertTinyint, DataType::Int8),
        (SqlSupportsConvert::SqlConvertVarbinary, DataType::Binary),
        (SqlSupportsConvert::SqlConvertVarchar, DataType::Utf8View),
    ];
    let targets = |from: &DataType| {
        types.iter().filter(|(_, to)| can_cast_types(from, to)).map(|(kind, _)| *kind as i32).collect()
    };
    types.iter().map(|(kind, from)| (*kind as i32, targets(from))).collect()
}

/// Limits: 0 says that there is none, or that it is not known.
fn add_limits(builder: &mut SqlInfoDataBuilder) {
    for info in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatementLength,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        builder.append(info, 0_i64);
    }
    // The specification says 32 bits, but the drivers of JDBC and ODBC read 64.
    let isolation = SqlTransactionIsolationLevel::SqlTransactionNone;
    builder.append(SqlInfo::SqlDefaultTransactionIsolation, i64::from(isolation as i32));
}
