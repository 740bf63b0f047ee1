//! Prepared queries by id and by what they are called.
//!
//! Owns: which query a name means.
//! Never: executes it; [`crate::prepared_query`] does.

use std::sync::Arc;

use weft_proto::v1::PreparedQuery;

use crate::keys;
use crate::prepared_query::{NAME_BYTES_MAX, is_template};
use crate::read::{Answer, Reader};

impl<'a> Reader<'a> {
    /// Every prepared query, by id. Scope: the whole state.
    #[must_use]
    pub fn prepared_queries(&self) -> Answer<Vec<&'a Arc<PreparedQuery>>> {
        self.answer(
            self.state.scalars.index,
            self.state.queries.values().collect(),
        )
    }

    /// One prepared query by its id. Scope: the whole state.
    #[must_use]
    pub fn prepared_query(&self, id: &str) -> Answer<Option<&'a Arc<PreparedQuery>>> {
        let row = self.state.queries.get(keys::fold(id).as_ref());
        self.answer(self.state.scalars.index, row)
    }

    /// The query that `name` means: the one with this id, the one of this name, or the template with the
    /// longest name that `name` begins with. Names count without regard to case.
    #[must_use]
    pub fn prepared_query_called(&self, name: &str) -> Option<&'a Arc<PreparedQuery>> {
        let name = keys::fold(name);
        if let Some(query) = self.state.queries.get(name.as_ref()) {
            return Some(query);
        }
        let named = |name: &str| {
            let id = self.state.query_names.get(name)?;
            self.state.queries.get(id)
        };
        if let Some(query) = named(&name).filter(|query| !is_template(query)) {
            return Some(query);
        }
        // No query has such a name, and filled into a template it would grow without bound.
        if name.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut ends = (0..=name.len())
            .rev()
            .filter(|end| name.is_char_boundary(*end));
        ends.find_map(|end| named(&name[..end]).filter(|query| is_template(query)))
    }
}
