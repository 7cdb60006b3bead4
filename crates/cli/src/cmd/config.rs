//! `pilotage config`: the settings in force.

use serde_json::{Value, json};

use super::Context;
use crate::error::CliError;

pub(crate) fn run(context: &Context) -> Result<(), CliError> {
    let settings = context.settings.describe();
    let file = &context.settings.config_path;
    let mut text = match file {
        Some(path) => format!("configuration file  {}", path.display()),
        None => "configuration file  none".into(),
    };
    for (key, entry) in &settings {
        let value = match &entry["value"] {
            Value::Null => "-".into(),
            Value::String(value) => value.clone(),
            other => other.to_string(),
        };
        text.push_str(&format!("\n{key:<10} {value}  ({})", entry["origin"].as_str().unwrap_or_default()));
    }
    context.output.result(text, &json!({ "config_file": file, "settings": settings }));
    Ok(())
}
