//! What differs between two recipes.

use std::collections::BTreeMap;

/// Keys with other values in `now` than in `before`, both the TOML of recipes, in a few words:
/// `` `train.rate` is 0.002, was 0.001 ``.
pub fn changes(before: &str, now: &str) -> String {
    let flat = |text: &str| {
        let mut out = BTreeMap::new();
        if let Ok(table) = text.parse::<toml::Table>() {
            flatten(String::new(), &toml::Value::Table(table), &mut out);
        }
        out
    };
    let (before, now) = (flat(before), flat(now));
    let mut keys: Vec<&String> = before.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    let changed: Vec<String> = keys
        .into_iter()
        .filter(|key| before.get(*key) != now.get(*key))
        .map(|key| {
            let of = |all: &BTreeMap<String, String>| {
                all.get(key).map_or("not there".into(), String::clone)
            };
            format!("`{key}` is {}, was {}", of(&now), of(&before))
        })
        .collect();
    const TOLD: usize = 4;
    let more = changed.len().saturating_sub(TOLD);
    let told = changed[..changed.len().min(TOLD)].join("; ");
    if more > 0 { format!("{told}; and {more} more") } else { told }
}

fn flatten(name: String, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    let under = |key: &str| if name.is_empty() { key.into() } else { format!("{name}.{key}") };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(key, value)| flatten(under(key), value, out));
        }
        toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
            let each = list.iter().enumerate();
            each.for_each(|(i, value)| flatten(format!("{name}[{i}]"), value, out));
        }
        other => {
            out.insert(name, other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_changed_key_is_named_with_both_values() {
        let before = "name = \"a\"\n[train]\nrate = 0.1\nsteps = 5\n[[data]]\nfile = \"x\"\n";
        let now = "name = \"a\"\n[train]\nrate = 0.2\n[[data]]\nfile = \"y\"\n[lora]\nrank = 2\n";
        let told = changes(before, now);
        let wanted = [
            "`data[0].file` is \"y\", was \"x\"",
            "`lora.rank` is 2, was not there",
            "`train.rate` is 0.2, was 0.1",
            "`train.steps` is not there, was 5",
        ];
        assert_eq!(told, wanted.join("; "));
        assert_eq!(changes(before, before), "");
        assert!(changes("a=1\nb=1\nc=1\nd=1\ne=1", "").ends_with("; and 1 more"));
    }
}
