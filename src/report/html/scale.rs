//! From decibels to colours and bins.

use maud::{Markup, html};

/// Colours of the style sheet: `.s0`, the lowest SQNR, to `.s7`.
pub(super) const COLOURS: usize = 8;
/// Steps between two colours, in dB: the smallest is what an eye may take for a difference worth a colour.
const STEPS: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
/// Bins may be as narrow as figures are shown, and as wide as the widest range of doubles.
const BIN_WIDTHS: [f64; 9] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
/// So that few classes stay close together at the upper end.
const SPREAD: f64 = 1.75;

/// Equal classes of SQNR, each with a colour; the first and the last are open.
pub(super) struct Scale {
    first_edge: f64,
    step: f64,
    classes: usize,
}

impl Scale {
    /// Over the middle 96 % of the values, so that one outlier does not take the colours of all others.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let outliers = values.len() / 50;
        let (low, high) = (values[outliers], values[last - outliers]);
        let classes = |step: f64| ((high / step).floor() - (low / step).floor()) as usize + 1;
        let widest = STEPS[STEPS.len() - 1];
        let step = STEPS.into_iter().find(|step| classes(*step) <= COLOURS).unwrap_or(widest);
        let first_edge = (low / step).floor() * step + step;
        Some(Self { first_edge, step, classes: classes(step).min(COLOURS) })
    }

    /// The style sheet's class for a value.
    pub(super) fn class(&self, db: f64) -> String {
        let class = ((db - self.first_edge) / self.step).floor() + 1.0;
        self.colour(class.clamp(0.0, (self.classes - 1) as f64) as usize)
    }

    fn colour(&self, class: usize) -> String {
        let apart = SPREAD.min((COLOURS - 1) as f64 / (self.classes.max(2) - 1) as f64);
        let from_top = (self.classes - 1 - class) as f64 * apart;
        format!("s{}", COLOURS - 1 - from_top.round() as usize)
    }

    /// The colours from low to high, each with its range.
    pub(super) fn legend(&self) -> Markup {
        html! {
            @for class in 0..self.classes {
                span.swatch.(self.colour(class)) { (self.range(class)) }
            }
        }
    }

    fn range(&self, class: usize) -> String {
        let edge = |index: usize| self.first_edge + self.step * index as f64;
        match class {
            _ if self.classes == 1 => format!("{:.0}–{:.0}", edge(0) - self.step, edge(0)),
            0 => format!("< {:.0}", edge(0)),
            _ if class + 1 == self.classes => format!("≥ {:.0}", edge(class - 1)),
            _ => format!("{:.0}–{:.0}", edge(class - 1), edge(class)),
        }
    }
}

/// Equal bins over all values, with edges at multiples of their width.
pub(super) struct Bins {
    pub(super) first: f64,
    pub(super) width: f64,
    pub(super) number: usize,
}

impl Bins {
    /// At most `most` bins over the values.
    pub(super) fn over(values: &[f64], most: usize) -> Option<Self> {
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        let number = |width: f64| ((high / width).floor() - (low / width).floor()) as usize + 1;
        let width = BIN_WIDTHS.into_iter().find(|width| number(*width) <= most)?;
        Some(Self { first: (low / width).floor() * width, width, number: number(width) })
    }

    /// How many values each bin holds.
    pub(super) fn count(&self, values: &[f64]) -> Vec<usize> {
        let mut counts = vec![0; self.number];
        for value in values {
            let bin = ((value - self.first) / self.width).floor().max(0.0) as usize;
            counts[bin.min(self.number - 1)] += 1;
        }
        counts
    }

    /// The lower edge of a bin.
    pub(super) fn edge(&self, bin: usize) -> f64 {
        self.first + self.width * bin as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_values() {
        let scale = Scale::of(vec![7.2, 13.0, 20.4, 44.0]).unwrap();
        assert_eq!((0..scale.classes).map(|c| scale.range(c)).next().unwrap(), "< 10");
        assert_eq!(scale.range(scale.classes - 1), "≥ 40");
        assert_eq!([-3.0, 7.2, 44.0, 200.0].map(|db| scale.class(db)), ["s0", "s0", "s7", "s7"]);
        assert!(Scale::of(vec![]).is_none());
    }

    #[test]
    fn few_classes_stay_close() {
        let scale = Scale::of(vec![19.4, 20.1]).unwrap();
        assert_eq!([19.4, 20.1].map(|db| scale.class(db)), ["s5", "s7"]);
        let single = Scale::of(vec![20.1]).unwrap();
        assert_eq!((single.range(0).as_str(), single.class(20.1).as_str()), ("20–21", "s7"));
    }

    #[test]
    fn bins_hold_every_value() {
        let values = [6.9, 7.0, 13.2, 44.4];
        let bins = Bins::over(&values, 40).unwrap();
        assert_eq!(bins.count(&values).iter().sum::<usize>(), values.len());
        assert_eq!((bins.first, bins.width, bins.number), (6.0, 1.0, 39));
        assert!(Bins::over(&[], 40).is_none());
    }

    /// Every colour and its text differ by 4.5:1, as WCAG asks of small text.
    #[test]
    fn cells_are_legible() {
        let channel = |hex: &str| f64::from(u8::from_str_radix(hex, 16).unwrap()) / 255.0;
        let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
        let luminance = |hex: &str| {
            let [r, g, b] = [0..2, 2..4, 4..6].map(|at| linear(channel(&hex[at])));
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let mut seen = 0;
        for line in include_str!("style.css").lines().filter(|line| line.trim_start().starts_with(".s")) {
            let Some((background, text)) = line.split_once("; color: #") else { continue };
            let Some((_, background)) = background.split_once("background: #") else { continue };
            let (a, b) = (luminance(background), luminance(&text[..6]));
            assert!((a.max(b) + 0.05) / (a.min(b) + 0.05) >= 4.5, "{line}");
            seen += 1;
        }
        assert_eq!(seen, 2 * COLOURS, "one line for each colour in the light and in the dark");
    }
}
