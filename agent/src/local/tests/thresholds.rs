//! The state machine of CONSUL.md B.6 as tables.

use crate::local::{Status, Streak, Thresholds};

/// `results` and what is shown after each: `p`, `w`, `c`. Begins critical.
fn check(success: u32, warning: Option<u32>, critical: u32, results: &str, shown: &str) {
    let thresholds = Thresholds {
        success_before_passing: success,
        failures_before_warning: warning,
        failures_before_critical: critical,
    };
    let word = |c| match c {
        'p' => Status::Passing,
        'w' => Status::Warning,
        _ => Status::Critical,
    };
    let mut streak = Streak::default();
    let mut now = Status::Critical;
    let mut seen = String::new();
    for result in results.chars() {
        now = streak.step(word(result), &thresholds).unwrap_or(now);
        seen.push_str(&now.as_str()[..1]);
    }
    assert_eq!(
        seen, shown,
        "success {success} warning {warning:?} critical {critical} over {results}"
    );
}

#[test]
fn without_thresholds_every_result_counts() {
    check(0, None, 0, "pcwcp", "pcwcp");
    check(1, None, 1, "pcwcp", "pcwcp");
}

#[test]
fn successes_are_counted_in_a_row() {
    check(3, None, 0, "pppcppp", "ccpcccp");
    check(2, None, 0, "wpwcw", "cpwcc");
}

#[test]
fn failures_are_counted_in_a_row() {
    check(0, None, 3, "pccpccc", "ppppppc");
    check(0, Some(1), 3, "pcccp", "pwwcp");
    check(0, Some(2), 3, "pcccwccc", "ppwcwwwc");
    check(0, Some(3), 3, "pccc", "pppc");
}

#[test]
fn the_first_result_of_an_unknown_check_counts_at_once() {
    let thresholds = Thresholds {
        success_before_passing: 3,
        failures_before_warning: Some(2),
        failures_before_critical: 3,
    };
    for first in [Status::Passing, Status::Warning, Status::Critical] {
        let mut streak = Streak::unknown(&thresholds);
        assert_eq!(streak.step(first, &thresholds), Some(first));
        let other = match first {
            Status::Critical => Status::Passing,
            _ => Status::Critical,
        };
        assert_eq!(
            streak.step(other, &thresholds),
            None,
            "the second is one of a row"
        );
    }
}

/// What is shown after `history`, told from the end of it alone: how long its last run of successes
/// or failures is, and what was shown before it.
fn shown(history: &[Status], thresholds: &Thresholds) -> Status {
    let Some((last, earlier)) = history.split_last() else {
        return Status::Critical;
    };
    let failed = |status: &Status| *status == Status::Critical;
    let run = history
        .iter()
        .rev()
        .take_while(|status| failed(status) == failed(last))
        .count();
    let reached = |threshold: u32| run >= usize::try_from(threshold.max(1)).unwrap();
    if !failed(last) {
        return if reached(thresholds.success_before_passing) {
            *last
        } else {
            shown(earlier, thresholds)
        };
    }
    if reached(thresholds.failures_before_critical) {
        Status::Critical
    } else if thresholds.failures_before_warning.is_some_and(reached) {
        Status::Warning
    } else {
        shown(earlier, thresholds)
    }
}

#[test]
fn every_combination_agrees_with_the_rule() {
    let words = [Status::Passing, Status::Warning, Status::Critical];
    let warnings = [None, Some(1), Some(2), Some(3)];
    for (success, warning, critical) in (0..4)
        .flat_map(|s| warnings.map(|w| (s, w)))
        .flat_map(|(s, w)| (0..4).map(move |c| (s, w, c)))
        .filter(|(_, w, c)| w.is_none_or(|w| w <= *c))
    {
        let thresholds = Thresholds {
            success_before_passing: success,
            failures_before_warning: warning,
            failures_before_critical: critical,
        };
        // All histories of seven results, in base three.
        for code in 0..3_usize.pow(7) {
            let history: Vec<Status> = (0..7).map(|n| words[code / 3_usize.pow(n) % 3]).collect();
            let (mut streak, mut now) = (Streak::default(), Status::Critical);
            for n in 0..history.len() {
                now = streak.step(history[n], &thresholds).unwrap_or(now);
                assert_eq!(
                    now,
                    shown(&history[..=n], &thresholds),
                    "{thresholds:?} over {history:?}"
                );
            }
        }
    }
}
