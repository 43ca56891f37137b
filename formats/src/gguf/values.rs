//! The values of keys.

use super::GgufProblem;
use super::cursor::{Cursor, Number, Stop};

/// How a value is read and written.
pub(super) trait Element: Sized {
    /// The fewest bytes that one takes.
    const LEAST: u64;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop>;

    fn write(&self, out: &mut Vec<u8>);
}

/// One row a type: variant, number, what holds it.
macro_rules! values {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $type:ty;)+) => {
        /// A value of a key.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $($(#[$doc])* $variant($type),)+
            /// Several values of one type.
            Array(Array),
        }

        /// Several values of one type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array { $($(#[$doc])* $variant(Vec<$type>)),+ }

        $(
            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(values: Vec<$type>) -> Self {
                    Self::Array(Array::$variant(values))
                }
            }
        )+

        impl Value {
            /// Reads a type and a value of it.
            pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
                match cursor.number::<u32>()? {
                    $($number => Ok(Self::$variant(Element::read(cursor)?)),)+
                    ARRAY => Array::read(cursor).map(Self::Array),
                    other => Err(Stop::Wrong(GgufProblem::ValueType(other))),
                }
            }

            /// Writes a type and a value of it.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => {
                        u32::write(&$number, out);
                        value.write(out);
                    })+
                    Self::Array(array) => {
                        ARRAY.write(out);
                        array.write(out);
                    }
                }
            }
        }

        impl Array {
            fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
                let kind = cursor.number::<u32>()?;
                let count = cursor.number::<u64>()?;
                match kind {
                    $($number => Ok(Self::$variant(elements(cursor, count)?)),)+
                    ARRAY => Err(Stop::Wrong(GgufProblem::Nested)),
                    other => Err(Stop::Wrong(GgufProblem::ValueType(other))),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(values) => {
                        u32::write(&$number, out);
                        (values.len() as u64).write(out);
                        values.iter().for_each(|value| value.write(out));
                    })+
                }
            }
        }
    };
}

values! {
    /// An unsigned byte.
    U8 = 0, u8;
    /// A signed byte.
    I8 = 1, i8;
    /// An unsigned integer of 16 bits.
    U16 = 2, u16;
    /// A signed integer of 16 bits.
    I16 = 3, i16;
    /// An unsigned integer of 32 bits.
    U32 = 4, u32;
    /// A signed integer of 32 bits.
    I32 = 5, i32;
    /// A binary32.
    F32 = 6, f32;
    /// A truth value.
    Bool = 7, bool;
    /// Text.
    Text = 8, String;
    /// An unsigned integer of 64 bits.
    U64 = 10, u64;
    /// A signed integer of 64 bits.
    I64 = 11, i64;
    /// A binary64.
    F64 = 12, f64;
}

/// The number of arrays.
const ARRAY: u32 = 9;

impl Value {
    /// The number that it is, if it is a whole one that is not negative.
    pub fn number(&self) -> Option<u64> {
        match *self {
            Self::U8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::U64(number) => Some(number),
            Self::I8(number) => number.try_into().ok(),
            Self::I16(number) => number.try_into().ok(),
            Self::I32(number) => number.try_into().ok(),
            Self::I64(number) => number.try_into().ok(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

/// Reads so many elements, if the file has bytes for them.
fn elements<T: Element>(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<T>, Stop> {
    cursor.expect("values", count, T::LEAST)?;
    (0..count).map(|_| T::read(cursor)).collect()
}

macro_rules! numbers {
    ($($type:ty),+) => {$(
        impl Element for $type {
            const LEAST: u64 = size_of::<Self>() as u64;

            fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
                cursor.number()
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl Number for $type {
            fn of(bytes: &[u8]) -> Option<(Self, usize)> {
                let bytes = bytes.first_chunk::<{ size_of::<Self>() }>()?;
                Some((Self::from_le_bytes(*bytes), bytes.len()))
            }
        }
    )+};
}

numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Element for bool {
    const LEAST: u64 = 1;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        match cursor.number::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Stop::Wrong(GgufProblem::Truth(other))),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for String {
    const LEAST: u64 = 8;

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        cursor.text()
    }

    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend_from_slice(self.as_bytes());
    }
}
