//! What changes in `config.json`: number types, an untied head, the number of classes.

use lorafleet_spec::base::Dtype;
use serde_json::{Map, Value, json};

use super::MergeError;
use super::plan::Plan;

/// The text of `config.json` for the merged model; the same bytes where nothing changes.
pub(super) fn edited(text: Vec<u8>, plan: &Plan, dtype: Option<Dtype>) -> Result<Vec<u8>, MergeError> {
    let problem = |message: String| MergeError::Json { file: "config.json".to_owned(), message };
    let mut config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| problem(error.to_string()))?;
    let before = config.clone();
    if let Some(dtype) = dtype {
        let word = match dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        };
        // Of either generation.
        let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        config.insert(key.to_owned(), json!(word));
    }
    if plan.untied {
        config.insert("tie_word_embeddings".to_owned(), json!(false));
    }
    if let Some(labels) = plan.labels.filter(|labels| known_labels(&config) != Some(*labels)) {
        config.remove("num_labels");
        let name = |i: usize| format!("LABEL_{i}");
        let by_id: Map<String, Value> = (0..labels).map(|i| (i.to_string(), json!(name(i)))).collect();
        let by_name: Map<String, Value> = (0..labels).map(|i| (name(i), json!(i))).collect();
        config.insert("id2label".to_owned(), Value::Object(by_id));
        config.insert("label2id".to_owned(), Value::Object(by_name));
    }
    if config == before {
        return Ok(text);
    }
    Ok(format!("{:#}\n", Value::Object(config)).into_bytes())
}

/// Classes that a configuration speaks of; transformers takes two where it is silent.
fn known_labels(config: &Map<String, Value>) -> Option<usize> {
    let listed = config.get("id2label").and_then(Value::as_object).map(Map::len);
    let counted = config.get("num_labels").and_then(Value::as_u64).map(|n| n as usize);
    listed.or(counted).or(Some(2))
}
