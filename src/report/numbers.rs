//! Numbers as people read them, the same in every front end.

/// What a measure in dB means, in a line of 80 characters.
pub const DECIBELS: &str = "SQNR of 20 dB: errors are a tenth of the weights; each 6 dB more halves them";

/// Steps of a thousand bytes.
const BYTE_UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// Bytes with three digits that count: `2.49 MB`, MB = 10^6.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < BYTE_UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{} {}", three_digits(value), BYTE_UNITS[unit]),
    }
}

/// A count: `12,345`, `1.24 million`, `3.40 billion`.
pub fn count(count: u64) -> String {
    match scale(count) {
        (_, "") => grouped(count),
        (unit, name) => format!("{} {name}", three_digits(count as f64 / unit)),
    }
}

/// A part of a count in the whole's unit: `1.2 of 3.4 billion`.
pub fn part_of(part: u64, whole: u64) -> String {
    match scale(whole) {
        (_, "") => format!("{} of {}", grouped(part), grouped(whole)),
        (unit, name) => format!("{:.1} of {:.1} {name}", part as f64 / unit, whole as f64 / unit),
    }
}

/// Weights per second.
pub fn rate(per_second: f64) -> String {
    format!("{} weights/s", count(per_second as u64))
}

/// A measure with a fixed number of decimals, `-` where there is none, `exact` where there was no error to measure.
pub fn measure(value: Option<f64>, decimals: usize) -> String {
    match value {
        None => "-".to_string(),
        Some(value) if value == f64::INFINITY => "exact".to_string(),
        Some(value) => format!("{value:.decimals$}"),
    }
}

/// Digits in groups of three: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The unit to tell a count in, and its name.
fn scale(count: u64) -> (f64, &'static str) {
    match count {
        0..1_000_000 => (1.0, ""),
        1_000_000..1_000_000_000 => (1e6, "million"),
        _ => (1e9, "billion"),
    }
}

/// Three digits that count of a number below a thousand.
fn three_digits(value: f64) -> String {
    let decimals = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_powers_of_ten() {
        let shown = [0, 999, 1000, 131_072, 2_490_000, 16_800_000, 4_000_000_000].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "131 kB", "2.49 MB", "16.8 MB", "4.00 GB"]);
    }

    #[test]
    fn counts_and_parts() {
        assert_eq!([7, 12_345, 1_240_000, 3_400_000_000].map(count), ["7", "12,345", "1.24 million", "3.40 billion"]);
        assert_eq!(part_of(1_200_000_000, 3_400_000_000), "1.2 of 3.4 billion");
        assert_eq!(part_of(1_200, 999_999), "1,200 of 999,999");
        assert_eq!(rate(310.4e6), "310 million weights/s");
    }

    #[test]
    fn measures() {
        assert_eq!(measure(Some(20.614), 2), "20.61");
        assert_eq!(measure(Some(0.9999994), 6), "0.999999");
        assert_eq!(measure(Some(f64::INFINITY), 2), "exact");
        assert_eq!(measure(None, 2), "-");
    }
}
