//! Names of tensors, and text of strangers made fit for messages.

/// `component/tensor`, or the tensor's name alone in a plain model.
pub fn full_name(component: &str, tensor: &str) -> String {
    if component.is_empty() { tensor.to_string() } else { format!("{component}/{tensor}") }
}

/// The candidate most like `name`, if it is so much like it that it may be what was meant.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// The least Jaro-Winkler similarity of a name that may have been meant.
    const LIKELY: f64 = 0.8;
    let likeness = |candidate: &str| strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
    let nearest = candidates.into_iter().map(|candidate| (likeness(candidate), candidate));
    nearest.filter(|(likeness, _)| *likeness >= LIKELY).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// Text from a file as a message shows it: one line of at most 200 characters.
pub fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String =
        text.chars().take(LONGEST).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_a_misspelled_name_and_refuses_another() {
        assert_eq!(nearest("lm_haed.weight", ["lm_head.weight", "norm.weight"]), Some("lm_head.weight"));
        assert_eq!(nearest("zzz", ["lm_head.weight"]), None);
    }

    #[test]
    fn shown_text_is_one_short_line() {
        assert_eq!(shown("a\nb"), "a\u{fffd}b");
        assert_eq!(shown(&"x".repeat(300)).chars().count(), 201);
    }
}
