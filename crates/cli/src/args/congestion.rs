//! The choice of a congestion controller.

use clap::ValueEnum;
use pilotage::ControllerKind;
use serde::{Deserialize, Serialize};

/// How fast a node sends (`spec/recovery.md`, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Congestion {
    /// The draft's AIMD: halves at each loss
    Newreno,
    /// RFC 9438, as TCP does by default
    Cubic,
    /// By a model of the path: losses that are not congestion hardly slow it down
    Bbr,
}

impl From<Congestion> for ControllerKind {
    fn from(choice: Congestion) -> Self {
        match choice {
            Congestion::Newreno => Self::NewReno,
            Congestion::Cubic => Self::Cubic,
            Congestion::Bbr => Self::Bbr,
        }
    }
}

impl From<ControllerKind> for Congestion {
    fn from(kind: ControllerKind) -> Self {
        match kind {
            ControllerKind::NewReno => Self::Newreno,
            ControllerKind::Cubic => Self::Cubic,
            ControllerKind::Bbr => Self::Bbr,
        }
    }
}
