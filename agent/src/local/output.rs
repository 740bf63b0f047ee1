//! Cutting check output to its limit.

/// `output` cut to `max` bytes at a character's edge, with Consul's ending that says so.
/// `total` is the size before any earlier cut.
pub(super) fn cut(output: &str, max: usize, total: usize) -> String {
    if total <= max && output.len() <= max {
        return output.to_owned();
    }
    let end = output.floor_char_boundary(max);
    format!("{} ... (captured {end} of {total} bytes)", &output[..end])
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn output_is_cut_at_a_character_and_says_so() {
        let cases = [
            ("abc", 4, 3, "abc"),
            ("abcd", 4, 4, "abcd"),
            ("abcdef", 4, 6, "abcd ... (captured 4 of 6 bytes)"),
            ("abcd", 4, 90, "abcd ... (captured 4 of 90 bytes)"),
            ("añb", 2, 4, "a ... (captured 1 of 4 bytes)"),
        ];
        for (output, max, total, expected) in cases {
            assert_eq!(cut(output, max, total), expected);
        }
    }
}
