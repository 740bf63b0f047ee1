//! Network coordinates on their way into the log: gathered, then written as one command.
//!
//! Owns: what waits to be written, the newest of each node, and its bounds.
//! Never: lets a report wait for the log; who reports one reports the next soon.
//! Source: Consul docs, "Network coordinates".

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use weft_catalog::Trace;
use weft_proto::v1;
use weft_proto::v1::stamped::Command;

use crate::handle::{Server, WriteFailure};

/// Pause between two batches of one server.
pub(crate) const BATCH_INTERVAL: Duration = Duration::from_secs(5);
/// Coordinates in one command.
const BATCH_MAX: usize = 128;
/// Nodes whose coordinates may wait on one server.
pub(crate) const WAITING_MAX: usize = 640;

/// What waits to be written, by node.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    newest: Mutex<BTreeMap<String, v1::Coordinate>>,
}

impl Waiting {
    /// Takes a report in place of an earlier one; `false` at the bound.
    fn put(&self, coordinate: v1::Coordinate) -> bool {
        let node = coordinate.node.to_ascii_lowercase();
        let mut newest = self.newest.lock();
        if newest.len() >= WAITING_MAX && !newest.contains_key(&node) {
            return false;
        }
        newest.insert(node, coordinate);
        true
    }

    /// All that waits, in commands of at most [`BATCH_MAX`].
    fn take(&self) -> Vec<v1::CoordinateBatch> {
        let all: Vec<_> = std::mem::take(&mut *self.newest.lock())
            .into_values()
            .collect();
        all.chunks(BATCH_MAX)
            .map(|chunk| v1::CoordinateBatch {
                coordinates: chunk.to_vec(),
            })
            .collect()
    }
}

impl Server {
    /// Takes the coordinate of a node, to be written with the next batch, within five seconds. If the batch
    /// cannot be written it is lost, and so is that of a node this server does not know: it would be left out
    /// in the end, and takes no place of one that counts.
    ///
    /// Errors: [`WriteFailure::Overloaded`] when too many wait already.
    pub fn report_coordinate(&self, coordinate: v1::Coordinate) -> Result<(), WriteFailure> {
        let (state, trace) = (self.state(), Trace::off());
        let unknown = state.read(&trace).node(&coordinate.node).rows.is_none();
        if unknown || self.inner.coordinates.put(coordinate) {
            return Ok(());
        }
        self.inner.metrics.coordinates_refused.inc();
        Err(WriteFailure::Overloaded(format!(
            "{WAITING_MAX} coordinates wait to be written; report it again later"
        )))
    }
}

/// Writes what waits, until the server stops.
pub(crate) async fn run(server: Server) {
    let mut stop = server.inner.stop.subscribe();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(BATCH_INTERVAL) => {}
        }
        for batch in server.inner.coordinates.take() {
            let count = batch.coordinates.len();
            match server.write(Command::Coordinates(batch)).await {
                Ok(_) => tracing::trace!(count, "coordinates written"),
                Err(cause) => tracing::debug!(count, error = %cause, "coordinates not written"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, bits: u64) -> v1::Coordinate {
        v1::Coordinate {
            node: node.to_owned(),
            number_bits: vec![bits],
        }
    }

    #[test]
    fn the_newest_of_each_node_waits_within_the_bound() {
        let waiting = Waiting::default();
        assert!(waiting.take().is_empty());
        for n in 0..WAITING_MAX {
            assert!(waiting.put(report(&format!("n{n:04}"), 1)));
        }
        assert!(!waiting.put(report("one-more", 1)));
        assert!(
            waiting.put(report("N0000", 2)),
            "one that waits is replaced"
        );
        let batches = waiting.take();
        let sizes: Vec<_> = batches.iter().map(|b| b.coordinates.len()).collect();
        assert_eq!(sizes, [128; 5]);
        assert_eq!(batches[0].coordinates[0].number_bits, [2]);
        assert!(waiting.put(report("one-more", 1)), "there is room again");
    }
}
