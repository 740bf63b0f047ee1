//! Join tokens, for who lists them.

use std::sync::Arc;

use weft_proto::v1::JoinToken;

use crate::read::{Answer, Reader};
use crate::topics::TableTopic;

impl<'a> Reader<'a> {
    /// Every join token, by id, those that were used or ran out within the last day among them. Scope: the operator's
    /// table.
    #[must_use]
    pub fn join_tokens(&self) -> Answer<Vec<&'a Arc<JoinToken>>> {
        self.trace.note_table(TableTopic::Operator);
        self.answer(
            self.state.scalars.tables.operator,
            self.state.join_tokens.values().collect(),
        )
    }
}
