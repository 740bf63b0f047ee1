//! Which selectors a config entry has in `filter=` (CONSUL.md B.3).

use super::Entry;
use crate::filter::{Kind, Selectable, Value};

impl Selectable for Entry {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["Kind" | "Name"] | ["Meta", _] => Some(Kind::Text),
            ["Meta"] => Some(Kind::Map),
            ["CreateIndex" | "ModifyIndex"] => Some(Kind::Number),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        let number = |index: u64| Value::Number(i64::try_from(index).unwrap_or(i64::MAX));
        match selector {
            ["Kind"] => test(Value::Text(self.kind.as_str())),
            ["Name"] => test(Value::Text(&self.name)),
            ["Meta"] => test(Value::Map(self.body.meta())),
            ["Meta", key] => {
                let value = self.body.meta().get(*key);
                test(value.map_or(Value::Missing, |text| Value::Text(text)))
            }
            ["CreateIndex"] => test(number(self.create_index)),
            ["ModifyIndex"] => test(number(self.modify_index)),
            _ => false,
        }
    }
}
