//! Golden vectors of `spec/vectors`, for the tests of the codecs.

use serde_json::Value;

/// The cases of a file.
pub(crate) fn cases(name: &str) -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spec/vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: Value = serde_json::from_str(&text).expect("JSON");
    file["cases"].as_array().expect("cases").clone()
}

/// Bytes of a field in hex digits.
pub(crate) fn bytes(case: &Value, key: &str) -> Vec<u8> {
    let text = case[key].as_str().unwrap_or_else(|| panic!("{key} in {case}"));
    hex::decode(text).expect("hex digits")
}
