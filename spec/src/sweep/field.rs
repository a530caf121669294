//! One field of a job's message set by its path in the job file, as though it stood there.

use lorafleet_proto::v1 as pb;
use serde_json::{Map, Value};

use crate::job::{FieldError, read_fields};

/// A job of which single fields can be set.
pub(super) struct Template {
    /// The message as canonical JSON.
    json: Value,
}

impl Template {
    /// Over a job without its defaults.
    pub fn new(spec: &pb::JobSpec) -> Result<Self, FieldError> {
        let json = serde_json::to_value(spec)
            .map_err(|error| FieldError::new("", format!("the job cannot be read: {error}")))?;
        Ok(Self { json })
    }

    /// The job with these fields set; each path is `field` or `section.field`.
    pub fn with<'a>(
        &self,
        fields: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<pb::JobSpec, Vec<FieldError>> {
        let (mut json, mut errors) = (self.json.clone(), Vec::new());
        for (path, value) in fields {
            match read(path, value) {
                Ok(fragment) => merge(&mut json, path, fragment),
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        serde_json::from_value(json)
            .map_err(|error| vec![FieldError::new("", format!("the job cannot be put together: {error}"))])
    }
}

/// A job file that says nothing but this field, as the message's JSON.
fn read(path: &str, value: &Value) -> Result<Value, Vec<FieldError>> {
    let root = match path.split_once('.') {
        None => Map::from_iter([(path.to_owned(), value.clone())]),
        Some((section, field)) => {
            let fields = Map::from_iter([(field.to_owned(), value.clone())]);
            Map::from_iter([(section.to_owned(), Value::Object(fields))])
        }
    };
    let (fragment, errors) = read_fields(&root);
    if !errors.is_empty() {
        return Err(errors);
    }
    serde_json::to_value(&fragment).map_err(|error| vec![FieldError::new(path, error.to_string())])
}

/// Takes one field from a fragment; what the fragment leaves out has its zero value there.
fn merge(json: &mut Value, path: &str, mut fragment: Value) {
    let (Value::Object(json), Value::Object(fragment)) = (json, &mut fragment) else { return };
    let Some((section, field)) = path.split_once('.') else {
        return take(json, fragment, path);
    };
    match (json.get_mut(section), fragment.get_mut(section)) {
        (Some(Value::Object(json)), Some(Value::Object(fragment))) => take(json, fragment, field),
        // The section appears by this field, with the defaults that a section in a job file has.
        (_, Some(section_fragment)) => {
            json.insert(section.to_owned(), section_fragment.take());
        }
        (_, None) => {}
    }
}

fn take(json: &mut Map<String, Value>, fragment: &mut Map<String, Value>, field: &str) {
    if matches!(field, "steps" | "epochs") {
        // Two ways to say how long; one replaces the other.
        json.remove("steps");
        json.remove("epochs");
    }
    let name = camel_case(field);
    match fragment.remove(&name) {
        Some(value) => drop(json.insert(name, value)),
        None => drop(json.remove(&name)),
    }
}

/// A field's name in canonical JSON: `global_batch` → `globalBatch`.
fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let mut letters = word.chars();
        let capital = letters.next().map(|letter| letter.to_ascii_uppercase());
        name + &capital.into_iter().chain(letters).collect::<String>()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::parse_yaml;

    fn set(yaml: &str, path: &str, value: &Value) -> pb::JobSpec {
        let root = serde_saphyr::from_str::<Value>(yaml).unwrap();
        let (spec, errors) = read_fields(root.as_object().unwrap());
        assert_eq!(errors, []);
        let mut spec = Template::new(&spec).unwrap().with([(path, value)]).unwrap();
        crate::fill_defaults(&mut spec);
        spec
    }

    /// A field that is set is as though it stood in the file, also where its section is not in the file.
    #[test]
    fn a_field_is_set_as_though_it_stood_in_the_file() {
        let bare = "base: ./base\ndata: {train: t.jsonl, eval: e.jsonl}\n";
        let full = "base: ./base\ndata: {train: t.jsonl, eval: e.jsonl}\nadapter: {rank: 4, dropout: 0.5}\n\
                    train: {epochs: 2, warmup: 0.5, seed: 9}\neval: {every: 10}\nworkers: {min: 1, max: 2}\n";
        for (path, value, section, field) in [
            ("adapter.rank", json!(8), "adapter", "rank: 8"),
            ("adapter.dropout", json!(0), "adapter", "dropout: 0"),
            ("adapter.targets", json!(["q_proj", "v_proj"]), "adapter", "targets: [q_proj, v_proj]"),
            ("adapter.targets", json!("all-linear"), "adapter", "targets: all-linear"),
            ("adapter.rslora", json!(true), "adapter", "rslora: true"),
            ("adapter.rank_pattern", json!({"q_proj": 2}), "adapter", "rank_pattern: {q_proj: 2}"),
            ("train.steps", json!(70), "train", "steps: 70"),
            ("train.epochs", json!(1.5), "train", "epochs: 1.5"),
            ("train.lr", json!(2.5e-4), "train", "lr: 2.5e-4"),
            ("train.seed", json!(u64::MAX), "train", "seed: 18446744073709551615"),
            ("train.global_batch", json!(4), "train", "global_batch: 4"),
            ("train.schedule", json!("wsd"), "train", "schedule: wsd"),
            ("eval.every", json!(0), "eval", "every: 0"),
            ("checkpoint.every", json!(7), "checkpoint", "every: 7"),
            ("workers.max", json!(3), "workers", "max: 3"),
        ] {
            let expected = parse_yaml(&format!("{bare}{section}: {{{field}}}\n")).unwrap();
            assert_eq!(set(bare, path, &value), expected, "{path}={value} without its section");

            let changed = set(full, path, &value);
            let again = set(&format!("{bare}{section}: {{{field}}}\n"), path, &value);
            let json = |spec: &pb::JobSpec| serde_json::to_value(spec).unwrap();
            let name = camel_case(path.split_once('.').unwrap().1);
            assert_eq!(
                json(&changed)[section].get(&name),
                json(&again)[section].get(&name),
                "{path}={value}"
            );
        }
        let changed = set(full, "train.steps", &json!(70)).train.unwrap();
        assert_eq!((changed.seed, changed.warmup), (9, 0.5), "its neighbours stay");
        assert_eq!(set(bare, "priority", &json!(5)).priority, 5);
    }

    #[test]
    fn what_is_no_field_is_told_with_the_nearest() {
        let template = Template::new(&pb::JobSpec::default()).unwrap();
        let error = |path, value: Value| template.with([(path, &value)]).unwrap_err()[0].to_string();
        assert_eq!(
            error("adapter.rnk", json!(8)),
            "adapter.rnk: is not a field of `adapter`; did you mean `rank`?"
        );
        assert_eq!(
            error("adaptor.rank", json!(8)),
            "adaptor: is not a field of a job file; did you mean `adapter`?"
        );
        assert_eq!(
            error("adapter.rank", json!("x")),
            "adapter.rank: must be a whole number, at least 1, not a text"
        );
    }
}
