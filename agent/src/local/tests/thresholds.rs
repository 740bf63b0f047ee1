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
