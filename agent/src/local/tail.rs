//! The last bytes of what a command wrote, however much it was.
//!
//! Owns: the bound on kept output, and how what is missing is told.
//! Never: reads anything itself.

use std::collections::VecDeque;

/// More output than this ends the command: whoever writes it is not reporting health.
pub(super) const FLOOD_BYTES: u64 = 64 * 1024 * 1024;

/// Keeps the newest `max` bytes.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: VecDeque<u8>,
    max: usize,
    total: u64,
}

impl Tail {
    pub(super) fn new(max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            max,
            total: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.max)..];
        let over = (self.kept.len() + bytes.len()).saturating_sub(self.max);
        self.kept.drain(..over);
        self.kept.extend(bytes);
    }

    pub(super) fn is_flood(&self) -> bool {
        self.total > FLOOD_BYTES
    }

    /// As text of about `max` bytes, saying first how much is missing, as Consul does.
    pub(crate) fn text(&self) -> String {
        let (front, back) = self.kept.as_slices();
        let bytes = [front, back].concat();
        let cut = self.total > bytes.len() as u64;
        // A character cut in two is left out; bytes that never were text become U+FFFD.
        let torn = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80);
        let bytes = &bytes[if cut { torn.count() } else { 0 }..];
        let text = String::from_utf8_lossy(bytes);
        let text = &text[text.ceil_char_boundary(text.len().saturating_sub(self.max))..];
        if cut {
            format!("Captured {} of {} bytes\n...\n{text}", self.max, self.total)
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tail;

    fn check(max: usize, writes: &[&[u8]], shown: &str) {
        let mut tail = Tail::new(max);
        for bytes in writes {
            tail.push(bytes);
            assert!(tail.kept.len() <= max && tail.kept.capacity() <= 2 * max.max(8));
        }
        assert_eq!(tail.text(), shown, "{max} of {writes:?}");
    }

    #[test]
    fn the_newest_bytes_are_kept() {
        check(4, &[], "");
        check(4, &[b"ab", b"cd"], "abcd");
        check(4, &[b"ab", b"cde"], "Captured 4 of 5 bytes\n...\nbcde");
        check(4, &[b"abcdefgh", b"i"], "Captured 4 of 9 bytes\n...\nfghi");
        check(
            3,
            &["xñy".as_bytes(), b"z"],
            "Captured 3 of 5 bytes\n...\nyz",
        );
        check(4, &[b"\xff\xfe"], "\u{fffd}");
    }

    #[test]
    fn a_flood_leaves_no_trace_but_its_size() {
        let mut tail = Tail::new(16);
        let chunk = vec![b'y'; 1024 * 1024];
        for _ in 0..64 {
            tail.push(&chunk);
        }
        assert!(!tail.is_flood() && tail.kept.capacity() < 64);
        tail.push(b"y");
        assert!(tail.is_flood());
        assert!(tail.text().starts_with("Captured 16 of 67108865 bytes\n"));
    }
}
