//! Aggregation by sums: what a group has seen is one value that adds up.

use std::fmt::Debug;
use std::ops::Add;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::{Field, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

/// A kind of sum.
pub(crate) trait Sums: Debug + Send + Sync + Clone + 'static {
    /// What adds up; its default is the sum of nothing.
    type Sum: Add<Output = Self::Sum> + Default + Copy + Debug + Send + Sync;

    /// What a batch's rows are read from.
    type Rows;

    /// Reads a batch.
    fn read(&self, args: &[ArrayRef]) -> Result<Self::Rows>;
    /// The sum of one row; `None` if it is NULL.
    fn row(&self, rows: &Self::Rows, row: usize) -> Result<Option<Self::Sum>>;
    /// The fields of a partial sum.
    fn state_fields() -> Vec<Field>;
    /// Partial sums as columns.
    fn to_state(sums: &[Self::Sum]) -> Vec<ArrayRef>;
    /// And back.
    fn from_state(state: &[ArrayRef]) -> Vec<Self::Sum>;
    /// The results.
    fn evaluate(&self, sums: &[Self::Sum]) -> ArrayRef;
}

/// The fields of a partial sum, named after the aggregate.
pub(crate) fn state_fields<S: Sums>(name: &str) -> Vec<FieldRef> {
    S::state_fields().into_iter().map(|f| Arc::new(f.clone().with_name(format!("{name}[{}]", f.name())))).collect()
}

/// One sum, for queries without groups.
#[derive(Debug)]
pub(crate) struct OneSum<S: Sums> {
    kind: S,
    sum: S::Sum,
}

impl<S: Sums> OneSum<S> {
    pub(crate) fn new(kind: S) -> Self {
        Self { kind, sum: S::Sum::default() }
    }
}

impl<S: Sums> Accumulator for OneSum<S> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = self.kind.read(values)?;
        for row in 0..values[0].len() {
            if let Some(sum) = self.kind.row(&rows, row)? {
                self.sum = self.sum + sum;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&self.kind.evaluate(&[self.sum]), 0)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        S::to_state(&[self.sum]).iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for sum in S::from_state(states) {
            self.sum = self.sum + sum;
        }
        Ok(())
    }
}

/// One sum a group.
#[derive(Debug)]
pub(crate) struct GroupSums<S: Sums> {
    kind: S,
    sums: Vec<S::Sum>,
}

impl<S: Sums> GroupSums<S> {
    pub(crate) fn new(kind: S) -> Self {
        Self { kind, sums: Vec::new() }
    }
}

impl<S: Sums> GroupsAccumulator for GroupSums<S> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize(total_num_groups, S::Sum::default());
        let rows = self.kind.read(values)?;
        for (row, &group) in group_indices.iter().enumerate().filter(|(row, _)| passes(opt_filter, *row)) {
            if let Some(sum) = self.kind.row(&rows, row)? {
                self.sums[group] = self.sums[group] + sum;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        Ok(self.kind.evaluate(&sums))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(S::to_state(&emit_to.take_needed(&mut self.sums)))
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.sums.resize(total_num_groups, S::Sum::default());
        for (sum, &group) in S::from_state(values).into_iter().zip(group_indices) {
            self.sums[group] = self.sums[group] + sum;
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = self.kind.read(values)?;
        let one = |row| if passes(opt_filter, row) { self.kind.row(&rows, row) } else { Ok(None) };
        let sums = (0..values[0].len()).map(|row| Ok(one(row)?.unwrap_or_default())).collect::<Result<Vec<_>>>()?;
        Ok(S::to_state(&sums))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<S::Sum>()
    }
}

fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}
