//! The types that DataFusion's SQL knows by name.

use arrow::array::RecordBatch;
use arrow::datatypes::DECIMAL256_MAX_PRECISION;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{CommandGetXdbcTypeInfo, Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};
use datafusion::common::Result;

use super::failed;

/// The types, or those of the one number that is asked for.
pub(super) fn type_info(command: CommandGetXdbcTypeInfo) -> Result<RecordBatch> {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    numbers().into_iter().chain(texts()).chain(times()).for_each(|row| builder.append(row));
    builder.append(XdbcTypeInfo { column_size: Some(1), ..row("BOOLEAN", XdbcDataType::XdbcBit) });
    builder.append(XdbcTypeInfo {
        column_size: Some(i32::MAX),
        literal_prefix: Some("X'".to_string()),
        literal_suffix: Some("'".to_string()),
        ..row("BYTEA", XdbcDataType::XdbcVarbinary)
    });
    let types = builder.build().map_err(failed)?;
    types.record_batch(command.data_type).map_err(failed)
}

/// What all types have in common: they take NULL, and conditions other than LIKE.
fn row(name: &str, data_type: XdbcDataType) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.to_string(),
        data_type,
        sql_data_type: data_type,
        local_type_name: Some(name.to_string()),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Basic,
        ..XdbcTypeInfo::default()
    }
}

fn parameters(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(ToString::to_string).collect())
}

/// Sizes are decimal digits, of floating point numbers the bits of the significand.
fn numbers() -> Vec<XdbcTypeInfo> {
    let number = |name, data_type, size, radix| XdbcTypeInfo {
        column_size: Some(size),
        num_prec_radix: Some(radix),
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        ..row(name, data_type)
    };
    let integer = |name, data_type, digits| XdbcTypeInfo {
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        ..number(name, data_type, digits, 10)
    };
    let unsigned =
        |name, data_type, digits| XdbcTypeInfo { unsigned_attribute: Some(true), ..integer(name, data_type, digits) };
    let decimal = |name, data_type| XdbcTypeInfo {
        create_params: parameters(&["precision", "scale"]),
        minimum_scale: Some(0),
        maximum_scale: Some(DECIMAL256_MAX_PRECISION.into()),
        ..number(name, data_type, DECIMAL256_MAX_PRECISION.into(), 10)
    };
    vec![
        integer("TINYINT", XdbcDataType::XdbcTinyint, 3),
        integer("SMALLINT", XdbcDataType::XdbcSmallint, 5),
        integer("INTEGER", XdbcDataType::XdbcInteger, 10),
        integer("BIGINT", XdbcDataType::XdbcBigint, 19),
        unsigned("TINYINT UNSIGNED", XdbcDataType::XdbcTinyint, 3),
        unsigned("SMALLINT UNSIGNED", XdbcDataType::XdbcSmallint, 5),
        unsigned("INTEGER UNSIGNED", XdbcDataType::XdbcInteger, 10),
        unsigned("BIGINT UNSIGNED", XdbcDataType::XdbcBigint, 20),
        number("REAL", XdbcDataType::XdbcReal, 24, 2),
        number("FLOAT", XdbcDataType::XdbcFloat, 24, 2),
        number("DOUBLE", XdbcDataType::XdbcDouble, 53, 2),
        decimal("DECIMAL", XdbcDataType::XdbcDecimal),
        decimal("NUMERIC", XdbcDataType::XdbcNumeric),
    ]
}

fn texts() -> Vec<XdbcTypeInfo> {
    let text = |name, data_type| XdbcTypeInfo {
        column_size: Some(i32::MAX),
        literal_prefix: Some("'".to_string()),
        literal_suffix: Some("'".to_string()),
        case_sensitive: true,
        searchable: Searchable::Full,
        ..row(name, data_type)
    };
    let sized = |name, data_type| XdbcTypeInfo { create_params: parameters(&["length"]), ..text(name, data_type) };
    vec![
        sized("CHAR", XdbcDataType::XdbcChar),
        sized("VARCHAR", XdbcDataType::XdbcVarchar),
        text("TEXT", XdbcDataType::XdbcLongvarchar),
    ]
}

/// Sizes are characters of the longest text, scales are digits of a second.
fn times() -> Vec<XdbcTypeInfo> {
    let time = |name, prefix: &str, data_type| XdbcTypeInfo {
        literal_prefix: Some(format!("{prefix} '")),
        literal_suffix: Some("'".to_string()),
        ..row(name, data_type)
    };
    let timestamp = |name, prefix, size, subcode| XdbcTypeInfo {
        column_size: Some(size),
        minimum_scale: Some(0),
        maximum_scale: Some(9),
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..time(name, prefix, XdbcDataType::XdbcTimestamp)
    };
    vec![
        XdbcTypeInfo {
            column_size: Some("2026-01-31".len() as i32),
            sql_data_type: XdbcDataType::XdbcDatetime,
            // Its number, 1, is that of the date too.
            datetime_subcode: Some(XdbcDatetimeSubcode::XdbcSubcodeYear),
            ..time("DATE", "DATE", XdbcDataType::XdbcDate)
        },
        XdbcTypeInfo {
            column_size: Some("23:59:59.123456789".len() as i32),
            minimum_scale: Some(9),
            maximum_scale: Some(9),
            sql_data_type: XdbcDataType::XdbcDatetime,
            datetime_subcode: Some(XdbcDatetimeSubcode::XdbcSubcodeTime),
            ..time("TIME", "TIME", XdbcDataType::XdbcTime)
        },
        XdbcTypeInfo {
            create_params: parameters(&["precision"]),
            ..timestamp(
                "TIMESTAMP",
                "TIMESTAMP",
                "2026-01-31 23:59:59.123456789".len() as i32,
                XdbcDatetimeSubcode::XdbcSubcodeTimestamp,
            )
        },
        timestamp(
            "TIMESTAMP WITH TIME ZONE",
            "TIMESTAMPTZ",
            "2026-01-31 23:59:59.123456789+01:00".len() as i32,
            XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
        ),
        time("INTERVAL", "INTERVAL", XdbcDataType::XdbcInterval),
    ]
}
