//! How large the results of functions can be.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};

use crate::sizes::value_bytes;

/// The bytes that a result has at most, roughly.
pub(super) type Estimate = fn(&Arguments) -> Result<u64>;

/// The functions, by their first names.
pub(super) const FUNCTIONS: [(&str, Estimate); 23] = [
    ("array_concat", sum),
    ("array_distinct", set),
    ("array_except", set),
    ("array_intersect", set),
    ("array_repeat", repeated_elements),
    ("array_replace", replaced_elements),
    ("array_replace_all", replaced_elements),
    ("array_replace_n", replaced_elements),
    ("array_resize", resized),
    ("array_to_string", joined_elements),
    ("array_union", set),
    ("concat", sum),
    ("concat_ws", joined),
    ("generate_series", series),
    ("levenshtein", compared),
    ("lpad", padded),
    ("make_array", sum),
    ("named_struct", sum),
    ("range", series),
    ("regexp_replace", replaced_matches),
    ("repeat", repeated),
    ("replace", replaced),
    ("rpad", padded),
];

/// What a function is called with. Constants are one row if there is nothing else.
pub(super) struct Arguments<'a> {
    values: &'a [ColumnarValue],
    rows: usize,
}

impl<'a> Arguments<'a> {
    pub(super) fn of(args: &'a ScalarFunctionArgs) -> Self {
        let constant = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        Self { values: &args.args, rows: if constant { 1 } else { args.number_rows } }
    }

    /// A number for each row, of an argument that may not be there.
    fn each(&self, argument: usize, number: impl Fn(&ArrayRef) -> Result<Vec<u64>>) -> Result<Vec<u64>> {
        Ok(match self.values.get(argument) {
            None => vec![0; self.rows],
            Some(ColumnarValue::Array(array)) => number(array)?,
            Some(ColumnarValue::Scalar(value)) => {
                let one = number(&value.to_array()?)?.first().copied().unwrap_or(0);
                vec![one; self.rows]
            }
        })
    }

    /// The bytes of each value.
    fn bytes(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| Ok(value_bytes(array).into_iter().map(|bytes| bytes as u64).collect()))
    }

    /// The bytes of each text, or the elements of each list.
    fn lengths(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| match array.data_type() {
            DataType::Null => Ok(vec![0; array.len()]),
            _ => counts(&length(array)?),
        })
    }

    /// How many times. A negative number counts as zero.
    fn counts(&self, argument: usize) -> Result<Vec<u64>> {
        self.each(argument, |array| counts(array))
    }

    /// The integers of an argument, which may contain NULL, or `otherwise` if the argument is missing.
    fn numbers(&self, argument: Option<usize>, to: &DataType, otherwise: i64) -> Result<Vec<Option<i64>>> {
        let value = argument.and_then(|argument| self.values.get(argument));
        let Some(value) = value else { return Ok(vec![Some(otherwise); self.rows]) };
        let array = cast(&cast(&value.to_array(self.rows)?, to)?, &DataType::Int64)?;
        Ok(array.as_primitive::<Int64Type>().iter().collect())
    }
}

fn counts(array: &dyn Array) -> Result<Vec<u64>> {
    let array = cast(array, &DataType::Int64)?;
    let array: &Int64Array = array.as_primitive();
    Ok(array.iter().map(|count| u64::try_from(count.unwrap_or(0)).unwrap_or(0)).collect())
}

/// The sum over all rows of what two numbers give.
fn over(a: &[u64], b: &[u64], bytes: impl Fn(u64, u64) -> u64) -> u64 {
    a.iter().zip(b).fold(0, |sum, (&a, &b)| sum.saturating_add(bytes(a, b)))
}

fn sum(args: &Arguments) -> Result<u64> {
    (0..args.values.len())
        .try_fold(0_u64, |sum, argument| Ok(args.bytes(argument)?.into_iter().fold(sum, u64::saturating_add)))
}

fn joined(args: &Arguments) -> Result<u64> {
    let separators = args.lengths(0)?.into_iter().fold(0, u64::saturating_add);
    Ok(sum(args)?.saturating_add(separators.saturating_mul(args.values.len() as u64)))
}

fn repeated(args: &Arguments) -> Result<u64> {
    Ok(over(&args.lengths(0)?, &args.counts(1)?, u64::saturating_mul))
}

/// A character has up to four bytes.
fn padded(args: &Arguments) -> Result<u64> {
    Ok(over(&args.lengths(0)?, &args.counts(1)?, |text, count| text.max(count.saturating_mul(4))))
}

fn replaced(args: &Arguments) -> Result<u64> {
    let (text, from, to) = (args.lengths(0)?, args.lengths(1)?, args.lengths(2)?);
    // Nothing is found nowhere.
    let found: Vec<_> = text.iter().zip(&from).map(|(text, from)| text.checked_div(*from).unwrap_or(0)).collect();
    Ok(over(&found, &to, u64::saturating_mul).saturating_add(text.into_iter().fold(0, u64::saturating_add)))
}

/// Each match gives the replacement, in which what was captured may stand as often as its number has room.
fn replaced_matches(args: &Arguments) -> Result<u64> {
    let bytes = |text: u64, to: u64| (text + 1).saturating_mul(to + 1).saturating_add(text);
    Ok(over(&args.lengths(0)?, &args.lengths(2)?, bytes))
}

fn repeated_elements(args: &Arguments) -> Result<u64> {
    Ok(over(&args.bytes(0)?, &args.counts(1)?, u64::saturating_mul))
}

/// The sets that elements are put into take much more than they do.
fn set(args: &Arguments) -> Result<u64> {
    Ok(sum(args)?.saturating_mul(12))
}

/// Every element may be one that is replaced.
fn replaced_elements(args: &Arguments) -> Result<u64> {
    let new = over(&args.lengths(0)?, &args.bytes(2)?, u64::saturating_mul);
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

fn resized(args: &Arguments) -> Result<u64> {
    const EMPTY: u64 = 16;
    let sizes = args.numbers(Some(1), &DataType::Int64, 0)?;
    if let Some(size) = sizes.iter().flatten().find(|size| **size < 0) {
        return exec_err!("array_resize: the size is {size}, allowed: 0 and more");
    }
    let new = over(&args.counts(1)?, &args.bytes(2)?, |count, fill| count.saturating_mul(EMPTY + fill));
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

fn joined_elements(args: &Arguments) -> Result<u64> {
    let width = args.values.first().map_or(0, |lists| width(&lists.data_type()));
    let each: Vec<_> = args.lengths(1)?.iter().zip(args.lengths(2)?).map(|(by, null)| by + null + width).collect();
    let count = args.each(0, |lists| Ok(each_list(lists, elements)))?;
    let new = over(&count, &each, u64::saturating_mul);
    Ok(args.bytes(0)?.into_iter().fold(new, u64::saturating_add))
}

/// A number for each list of an array.
fn each_list(lists: &ArrayRef, number: impl Fn(&ArrayRef) -> u64) -> Vec<u64> {
    match lists.data_type() {
        DataType::List(_) => lists.as_list::<i32>().iter().map(|list| list.as_ref().map_or(0, &number)).collect(),
        DataType::LargeList(_) => lists.as_list::<i64>().iter().map(|list| list.as_ref().map_or(0, &number)).collect(),
        DataType::FixedSizeList(..) => {
            lists.as_fixed_size_list().iter().map(|list| list.as_ref().map_or(0, &number)).collect()
        }
        _ => vec![0; lists.len()],
    }
}

/// The elements of a list, those of lists within it one by one.
fn elements(list: &ArrayRef) -> u64 {
    if list.data_type().is_nested() { each_list(list, elements).into_iter().sum() } else { list.len() as u64 }
}

/// The characters of an element that is no text: floats are written with all their digits.
fn width(data_type: &DataType) -> u64 {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            width(field.data_type())
        }
        DataType::Float64 => 330,
        DataType::Decimal256(..) => 80,
        DataType::Float16 | DataType::Float32 | DataType::Decimal128(..) => 50,
        _ => 32,
    }
}

/// Nothing large, but each character of one text is compared with each of the other.
fn compared(args: &Arguments) -> Result<u64> {
    const MOST: u64 = 4_000_000_000;
    let steps = over(&args.lengths(0)?, &args.lengths(1)?, u64::saturating_mul);
    if steps > MOST {
        return exec_err!("levenshtein: of these texts it would take {steps} steps, {MOST} are allowed");
    }
    Ok(steps / 100)
}

/// Of whole numbers, days or nanoseconds, eight bytes each.
fn series(args: &Arguments) -> Result<u64> {
    let Some(first) = args.values.first() else { return Ok(0) };
    let day: i64 = 86_400_000_000_000;
    let (unit, to) = match first.data_type() {
        DataType::Date32 | DataType::Date64 => (day, DataType::Date32),
        DataType::Timestamp(_, zone) => (1, DataType::Timestamp(TimeUnit::Nanosecond, zone)),
        DataType::Null => return Ok(0),
        _ => (1, DataType::Int64),
    };
    // One argument is the end.
    let (start, stop) = if args.values.len() == 1 { (None, Some(0)) } else { (Some(0), Some(1)) };
    let (start, stop) = (args.numbers(start, &to, 0)?, args.numbers(stop, &to, 0)?);
    let rows = start.iter().zip(&stop).zip(steps(args, day)?).map(|((&start, &stop), step)| {
        // A series with a NULL bound or step is empty. The function itself reports a step of zero.
        let (Some(start), Some(stop), Some(step)) = (start, stop, step) else { return 1 };
        let way = (i128::from(stop) - i128::from(start)) * i128::from(unit);
        if step == 0 || (way < 0) != (step < 0) { 1 } else { way / step + 1 }
    });
    let elements = rows.fold(0_u64, |sum, rows| sum.saturating_add(u64::try_from(rows).unwrap_or(u64::MAX)));
    Ok(elements.saturating_mul(8))
}

/// The steps of series; of intervals, in nanoseconds.
fn steps(args: &Arguments, day: i64) -> Result<Vec<Option<i128>>> {
    let Some(step) = args.values.get(2).filter(|step| matches!(step.data_type(), DataType::Interval(_))) else {
        let steps = args.numbers(Some(2), &DataType::Int64, 1)?;
        return Ok(steps.into_iter().map(|step| step.map(i128::from)).collect());
    };
    let steps = cast(&step.to_array(args.rows)?, &DataType::Interval(IntervalUnit::MonthDayNano))?;
    let steps = steps.as_primitive::<IntervalMonthDayNanoType>();
    // A month more and some days less may be no step at all, and the series would never end.
    if let Some(step) = steps.iter().flatten().find(goes_both_ways) {
        let IntervalMonthDayNano { months, days, nanoseconds } = step;
        return exec_err!(
            "the step of a series goes both ways: {months} months, {days} days and {nanoseconds} nanoseconds; give them one sign"
        );
    }
    // The shortest month, and the shortest day where clocks change.
    let nanoseconds = |IntervalMonthDayNano { months, days, nanoseconds }| {
        let days = i128::from(months) * 28 + i128::from(days);
        days * i128::from(day) * 23 / 24 + i128::from(nanoseconds)
    };
    Ok(steps.iter().map(|step| step.map(nanoseconds)).collect())
}

fn goes_both_ways(step: &IntervalMonthDayNano) -> bool {
    let signs = [i64::from(step.months), i64::from(step.days), step.nanoseconds].map(i64::signum);
    signs.contains(&1) && signs.contains(&-1)
}
