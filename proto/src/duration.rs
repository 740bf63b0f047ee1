//! Go duration text: `1h30m`, `10s`, `1.5h`, `250ms`. (Being written.)
