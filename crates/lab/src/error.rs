//! What can go wrong.

/// Failures of the laboratory.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This machine or user cannot have a laboratory: skip, and say so.
    #[error("no laboratory here: {0}")]
    Unavailable(String),
    /// A setting that cannot be read.
    #[error("link setting: {0}")]
    Setting(String),
    /// A step of setting up or running failed.
    #[error("{stage}: {cause}")]
    Failed {
        /// What was attempted.
        stage: String,
        /// Why it failed.
        cause: String,
    },
}

impl LabError {
    pub(crate) fn failed(stage: impl Into<String>, cause: impl ToString) -> Self {
        Self::Failed { stage: stage.into(), cause: cause.to_string() }
    }
}
