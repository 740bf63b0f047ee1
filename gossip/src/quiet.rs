//! Warnings that an outsider can provoke are logged once per subject and interval.

use std::collections::BTreeMap;
use std::time::Duration;

const SUBJECTS_MAX: usize = 256;
const INTERVAL: Duration = Duration::from_secs(30);

/// Remembers when each subject was last spoken of.
#[derive(Debug, Default)]
pub(crate) struct Quiet<K: Ord> {
    spoken: BTreeMap<K, Duration>,
}

impl<K: Ord> Quiet<K> {
    pub(crate) fn new() -> Self {
        Self {
            spoken: BTreeMap::new(),
        }
    }

    /// Whether to speak of `subject` now. Full of fresh subjects it stays silent.
    pub(crate) fn may_speak(&mut self, now: Duration, subject: K) -> bool {
        if let Some(at) = self.spoken.get(&subject)
            && now < *at + INTERVAL
        {
            return false;
        }
        if self.spoken.len() >= SUBJECTS_MAX {
            self.spoken.retain(|_, at| now < *at + INTERVAL);
            if self.spoken.len() >= SUBJECTS_MAX {
                return false;
            }
        }
        self.spoken.insert(subject, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_per_interval_and_a_bound() {
        let mut quiet = Quiet::new();
        assert!(quiet.may_speak(Duration::ZERO, 0));
        assert!(!quiet.may_speak(Duration::from_secs(29), 0));
        assert!(quiet.may_speak(Duration::from_secs(30), 0));
        for n in 1..1_000 {
            quiet.may_speak(Duration::from_secs(31), n);
        }
        assert_eq!(quiet.spoken.len(), SUBJECTS_MAX);
        assert!(quiet.may_speak(Duration::from_secs(90), 5_000));
    }
}
