//! Consul JSON forms of the domain records. (Being written.)
