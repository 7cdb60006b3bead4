//! Progress bars on a terminal, nothing elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// How often a bar is redrawn at most, and a progress event is due.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

const BYTES: &str =
    "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}";
const BYTES_WITHOUT_END: &str = "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}";
const STEPS: &str = "{prefix} [{bar:30}] {pos}/{len}";

/// A bar that exists only where it is wanted.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    due: Instant,
}

impl Progress {
    /// Bytes of `total`, or without a known end.
    pub(crate) fn bytes(output: &Output, label: &str, total: Option<u64>) -> Self {
        let bar = output.wants_progress().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let template = match total {
                Some(_) => BYTES,
                None => BYTES_WITHOUT_END,
            };
            bar.set_style(style(template));
            bar.set_prefix(label.to_owned());
            bar
        });
        Self { bar, due: Instant::now() }
    }

    /// Steps of `total`.
    pub(crate) fn steps(output: &Output, label: &str, total: u64) -> Self {
        let bar = output.wants_progress().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(STEPS));
            bar.set_prefix(label.to_owned());
            bar
        });
        Self { bar, due: Instant::now() }
    }

    /// Where it stands; cheap enough for every chunk.
    pub(crate) fn set(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// True at most once per [`INTERVAL`]: time for a progress event.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.due;
        if due {
            self.due = now + INTERVAL;
        }
        due
    }

    /// Removes the bar.
    pub(crate) fn clear(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [BYTES, BYTES_WITHOUT_END, STEPS] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
