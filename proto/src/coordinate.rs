//! Network coordinates as numbers: where a node lies, and how far two are apart.
//!
//! Owns: [`Coordinate`], its distance, and its form in the log (bits, so that replicas never round).
//! Never: learns a coordinate; the pool does.
//! Source: Serf docs, "Network coordinates".

use crate::v1;

/// Numbers of a coordinate's vector.
pub const DIMENSIONS: usize = 8;
/// The error of a coordinate that knows nothing; no error is larger.
pub const ERROR_MAX: f64 = 1.5;
/// Seconds; no number of a coordinate is larger. Eleven days: a network that slow is none.
pub const SECONDS_MAX: f64 = 1.0e6;
/// Seconds; the access link costs at least this.
pub const HEIGHT_MIN: f64 = 10.0e-6;

/// A place in the network. Distances are seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coordinate {
    /// The place proper.
    pub vector: [f64; DIMENSIONS],
    /// How far off it may be, relative; [`ERROR_MAX`] knows nothing.
    pub error: f64,
    /// What the model cannot express, added to every distance.
    pub adjustment: f64,
    /// The way from the node to the network proper.
    pub height: f64,
}

impl Default for Coordinate {
    fn default() -> Self {
        Self {
            vector: [0.0; DIMENSIONS],
            error: ERROR_MAX,
            adjustment: 0.0,
            height: HEIGHT_MIN,
        }
    }
}

impl Coordinate {
    /// Whether every number is one, and of a size that a network can have.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let sized = |number: &f64| number.abs() <= SECONDS_MAX;
        self.numbers().iter().all(sized) && self.height >= 0.0
    }

    /// The time a packet takes to the other and back, in seconds, as the model has it.
    #[must_use]
    pub fn distance(&self, other: &Self) -> f64 {
        let raw = self.raw_distance(other);
        let adjusted = raw + self.adjustment + other.adjustment;
        if adjusted > 0.0 { adjusted } else { raw }
    }

    /// The distance without what the model cannot express.
    #[must_use]
    pub fn raw_distance(&self, other: &Self) -> f64 {
        self.apart(other) + self.height + other.height
    }

    /// How far apart the vectors are.
    #[must_use]
    pub fn apart(&self, other: &Self) -> f64 {
        let squares = self
            .vector
            .iter()
            .zip(other.vector)
            .map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f64>().sqrt()
    }

    /// Vector, error, adjustment, height.
    #[must_use]
    pub fn numbers(&self) -> [f64; DIMENSIONS + 3] {
        std::array::from_fn(|n| match n {
            n if n < DIMENSIONS => self.vector[n],
            DIMENSIONS => self.error,
            n if n == DIMENSIONS + 1 => self.adjustment,
            _ => self.height,
        })
    }

    /// The inverse of [`Self::numbers`].
    #[must_use]
    pub fn of_numbers(numbers: [f64; DIMENSIONS + 3]) -> Self {
        Self {
            vector: std::array::from_fn(|n| numbers[n]),
            error: numbers[DIMENSIONS],
            adjustment: numbers[DIMENSIONS + 1],
            height: numbers[DIMENSIONS + 2],
        }
    }

    /// As the log keeps it for `node`.
    #[must_use]
    pub fn record(&self, node: &str) -> v1::Coordinate {
        v1::Coordinate {
            node: node.to_owned(),
            number_bits: self
                .numbers()
                .iter()
                .map(|number| number.to_bits())
                .collect(),
        }
    }

    /// The inverse of [`Self::record`]; `None` when the record holds no coordinate.
    #[must_use]
    pub fn of_record(record: &v1::Coordinate) -> Option<Self> {
        let bits: [u64; DIMENSIONS + 3] = record.number_bits.as_slice().try_into().ok()?;
        Some(Self::of_numbers(bits.map(f64::from_bits))).filter(Self::is_sound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(x: f64, height: f64, adjustment: f64) -> Coordinate {
        let mut vector = [0.0; DIMENSIONS];
        vector[3] = x;
        Coordinate {
            vector,
            height,
            adjustment,
            ..Coordinate::default()
        }
    }

    #[test]
    fn a_distance_is_vectors_heights_and_adjustments() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(at(0.3, 0.0, 0.0).distance(&at(0.1, 0.0, 0.0)), 0.2));
        assert!(near(at(0.3, 0.01, 0.0).distance(&at(0.1, 0.02, 0.0)), 0.23));
        assert!(near(
            at(0.3, 0.0, -0.05).distance(&at(0.1, 0.0, 0.02)),
            0.17
        ));
        let negative = at(0.3, 0.0, -0.5).distance(&at(0.1, 0.0, 0.0));
        assert!(near(negative, 0.2), "an adjustment below nothing is none");
    }

    #[test]
    fn a_record_keeps_every_bit() {
        let place = Coordinate {
            error: 0.1 + 0.2,
            ..at(-1.0 / 3.0, 1e-300, -0.0)
        };
        let record = place.record("n1");
        assert_eq!(record.node, "n1");
        assert_eq!(Coordinate::of_record(&record), Some(place));
        let mut short = record.clone();
        short.number_bits.pop();
        assert_eq!(Coordinate::of_record(&short), None);
        let mut wrong = record;
        for number in [f64::NAN, f64::INFINITY, 1e200, -1e7] {
            wrong.number_bits[0] = number.to_bits();
            assert_eq!(Coordinate::of_record(&wrong), None, "{number}");
        }
        let below = at(0.0, -0.1, 0.0);
        assert_eq!(Coordinate::of_record(&below.record("n1")), None);
    }
}
