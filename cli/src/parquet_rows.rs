//! The rows of a query as a Parquet file.

use std::io::Write;

use datafusion::error::DataFusionError;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::failure::Failure;

/// Bytes after which a row group ends: a row of weights may have hundreds of KiB.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Writes every row.
pub(crate) async fn write(mut rows: SendableRecordBatchStream, out: &mut (impl Write + Send)) -> Result<(), Failure> {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(out, rows.schema(), Some(properties)).map_err(failure)?;
    while let Some(batch) = rows.try_next().await? {
        writer.write(&batch).map_err(failure)?;
        if writer.in_progress_size() > ROW_GROUP_BYTES {
            writer.flush().map_err(failure)?;
        }
    }
    writer.close().map_err(failure)?;
    Ok(())
}

/// What the output said, or what Parquet cannot hold.
fn failure(error: ParquetError) -> Failure {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => Failure::Output(*error),
            Err(source) => DataFusionError::External(source).into(),
        },
        error => DataFusionError::from(error).into(),
    }
}
