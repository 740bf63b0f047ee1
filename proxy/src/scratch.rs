//! One buffer a thread that reads go into, so that a quiet connection holds none.

use std::cell::RefCell;

/// A full window of a stream, and four TLS records.
pub(crate) const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// What is in it before and after means nothing. Not to be nested.
pub(crate) fn with<R>(use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}
