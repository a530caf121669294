//! A whole model as a Hugging Face folder's files: its configuration and its weights, in f32.

use lorafleet_spec::base::{BaseShape, HeadShape};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::adapter::AdapterError;
use crate::params::{Layout, WholeTensor};
use crate::tensor_file::{Tensor, TensorFile, Values};

/// Name of the file that holds a whole model's weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// Name of the file that says what a model is.
pub const MODEL_CONFIG_FILE: &str = "config.json";

/// The text of a trained model's `config.json`: the base's, but for the type of the weights, which are written in f32,
/// and the classes of a classifier's head.
///
/// # Errors
/// The base's text is no JSON object.
pub(super) fn config(base: &str, shape: &BaseShape, classes: &[String]) -> Result<String, AdapterError> {
    let wrong = |message: String| AdapterError::Config(format!("{MODEL_CONFIG_FILE} of the base: {message}"));
    let mut config: Map<String, Value> =
        serde_json::from_str(base).map_err(|error| wrong(error.to_string()))?;
    // Both generations of configurations name the type of the weights.
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.to_owned(), json!("float32"));
    if let HeadShape::Classifier { labels, .. } = shape.head {
        let name = |class: usize| classes.get(class).cloned().unwrap_or_else(|| format!("LABEL_{class}"));
        let names: Map<String, Value> = (0..labels).map(|c| (c.to_string(), json!(name(c)))).collect();
        let numbers: Map<String, Value> = (0..labels).map(|c| (name(c), json!(c))).collect();
        config.insert("id2label".to_owned(), names.into());
        config.insert("label2id".to_owned(), numbers.into());
        config.insert("problem_type".to_owned(), json!(problem(labels)));
        if let Some(class) = config.get("architectures").and_then(|list| list[0].as_str()) {
            config.insert("architectures".to_owned(), json!([classifier(class)]));
        }
    }
    let mut text = serde_json::to_string_pretty(&config).map_err(|error| wrong(error.to_string()))?;
    text.push('\n');
    Ok(text)
}

fn problem(labels: usize) -> &'static str {
    if labels == 1 { "regression" } else { "single_label_classification" }
}

/// transformers' name of a family's classifier, from the name of any of its classes: `BertForMaskedLM`, `BertModel`.
fn classifier(class: &str) -> String {
    let family = class.split("For").next().unwrap_or(class);
    let family = ["LMHeadModel", "Model"].iter().find_map(|end| family.strip_suffix(end)).unwrap_or(family);
    format!("{family}ForSequenceClassification")
}

/// `model.safetensors`: every whole tensor of the layout by its name.
pub(super) fn write<'a>(layout: &Layout, weights: &'a [f32]) -> TensorFile<'a> {
    let tensor = |whole: &WholeTensor| Tensor {
        name: whole.name.clone(),
        shape: whole.shape.clone(),
        values: Values::Floats(&weights[whole.place.clone()]),
    };
    TensorFile::new(layout.whole().iter().map(tensor).collect())
}

/// Reads what [`write`] wrote into a flat buffer of this layout.
///
/// # Errors
/// When the file is damaged, or its tensors are not exactly those of the layout.
pub(super) fn read(layout: &Layout, bytes: &[u8]) -> Result<Vec<f32>, AdapterError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| AdapterError::Safetensors { file: MODEL_FILE, message: error.to_string() })?;
    let problem = |problems: String| AdapterError::Tensors { file: MODEL_FILE, problems };
    let mut weights = vec![0.0; layout.len()];
    for tensor in layout.whole() {
        let view = file.tensor(&tensor.name).map_err(|_| problem(format!("{} is missing", tensor.name)))?;
        if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
            let (dtype, shape) = (view.dtype(), view.shape());
            return Err(problem(format!(
                "{} is {dtype:?} {shape:?}, not F32 {:?}",
                tensor.name, tensor.shape
            )));
        }
        for (to, bytes) in weights[tensor.place.clone()].iter_mut().zip(view.data().as_chunks::<4>().0) {
            *to = f32::from_le_bytes(*bytes);
        }
    }
    if file.len() != layout.whole().len() {
        return Err(problem(format!("it has {} tensors, not {}", file.len(), layout.whole().len())));
    }
    if !weights.iter().all(|weight| weight.is_finite()) {
        return Err(problem("some values are not finite".to_owned()));
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut layout = Layout::new();
        layout.push_whole("b.weight", &[2, 3]);
        layout.push_whole("a.bias", &[2]);
        let weights: Vec<f32> = (0..8).map(|i| i as f32 * 0.5).collect();
        let bytes = write(&layout, &weights).to_vec();
        assert_eq!(read(&layout, &bytes).unwrap(), weights);
        assert_eq!(bytes, write(&layout, &weights).to_vec());
        let mut other = layout.clone();
        other.push_whole("c", &[1]);
        assert!(read(&other, &bytes).unwrap_err().to_string().contains("c is missing"));
        assert!(
            read(&layout, &write(&other, &[0.0; 9]).to_vec())
                .unwrap_err()
                .to_string()
                .contains("3 tensors, not 2")
        );
    }

    #[test]
    fn a_classifier_keeps_its_familys_name() {
        for class in ["BertForMaskedLM", "BertModel", "BertForSequenceClassification"] {
            assert_eq!(classifier(class), "BertForSequenceClassification");
        }
        assert_eq!(classifier("GPT2LMHeadModel"), "GPT2ForSequenceClassification");
        assert_eq!(classifier("LlamaForCausalLM"), "LlamaForSequenceClassification");
    }
}
