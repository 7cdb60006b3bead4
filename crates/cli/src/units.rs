//! Sizes and durations as people write and read them.

use std::time::Duration;

/// Why a size or duration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    /// Not a number with a unit.
    #[error("expected {0}")]
    Format(&'static str),
    /// Does not fit in 64 bits.
    #[error("too large")]
    TooLarge,
}

const SIZE_FORMAT: &str = "a size such as 4096, 64KiB, 1.5GiB or 100MB (K, M, G, T alone count by 1024)";
const DURATION_FORMAT: &str = "a duration such as 250ms, 5s, 1.5s or 2m";

/// Parses `4096`, `64KiB`, `1.5GiB`, `100MB`; case does not matter.
pub(crate) fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text).ok_or(UnitError::Format(SIZE_FORMAT))?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(UnitError::Format(SIZE_FORMAT)),
    };
    scale(number, factor).map_err(|error| error.unwrap_or(UnitError::Format(SIZE_FORMAT)))
}

/// Parses `250ms`, `5s`, `2m`; the unit is required unless the number is 0.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text).ok_or(UnitError::Format(DURATION_FORMAT))?;
    let micros: u64 = match unit {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "" if number.bytes().all(|byte| byte == b'0') => 0,
        _ => return Err(UnitError::Format(DURATION_FORMAT)),
    };
    scale(number, micros)
        .map(Duration::from_micros)
        .map_err(|error| error.unwrap_or(UnitError::Format(DURATION_FORMAT)))
}

/// The number in front and the unit behind it.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (!number.is_empty()).then(|| (number, unit.trim_start()))
}

/// `number` (digits, perhaps a point and up to 9 more digits) times `factor`, rounded down, without
/// floating point. `Err(None)` = malformed number.
fn scale(number: &str, factor: u64) -> Result<u64, Option<UnitError>> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return Err(None);
    }
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(None);
    }
    let whole: u128 = whole.parse().map_err(|_| Some(UnitError::TooLarge))?;
    let mut value = whole.checked_mul(factor.into()).ok_or(Some(UnitError::TooLarge))?;
    if !fraction.is_empty() {
        let part: u128 = fraction.parse().map_err(|_| None)?;
        value += part * u128::from(factor) / 10u128.pow(fraction.len() as u32);
    }
    u64::try_from(value).map_err(|_| Some(UnitError::TooLarge))
}

/// `256.0 MiB`.
pub(crate) fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `2.41 Gbit/s`.
pub(crate) fn format_rate(bits_per_second: f64) -> String {
    const UNITS: [(&str, f64); 4] = [("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0)];
    for (unit, factor) in UNITS {
        if bits_per_second >= factor {
            return format!("{:.2} {unit}", bits_per_second / factor);
        }
    }
    "0 bit/s".into()
}

/// `412 µs`, `3.2 ms`, `1.50 s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros < 1_000 {
        format!("{micros} µs")
    } else if micros < 1_000_000 {
        format!("{:.1} ms", micros as f64 / 1e3)
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64M", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("100MB", 100_000_000),
            ("0.5k", 512),
            ("16777215T", 16_777_215 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.", ".5", "1..5", "1XB", "1.0000000001M", "0x10", "1e3"] {
            assert_eq!(parse_size(text), Err(UnitError::Format(SIZE_FORMAT)), "{text}");
        }
        assert_eq!(parse_size("16777216T"), Err(UnitError::TooLarge));
        assert_eq!(parse_size(&"9".repeat(60)), Err(UnitError::TooLarge));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "5", "s", "1 day", "-1s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn readable_forms() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(256 << 20), "256.0 MiB");
        assert_eq!(format_bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(format_bytes(u64::MAX), "16.0 EiB");
        assert_eq!(format_rate(2.41e9), "2.41 Gbit/s");
        assert_eq!(format_rate(0.0), "0 bit/s");
        assert_eq!(format_duration(Duration::from_micros(412)), "412 µs");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1.50 s");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn plain_numbers_come_back(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn formatting_never_panics(bytes: u64, rate: f64, micros: u64) {
            format_bytes(bytes);
            format_rate(rate);
            format_duration(Duration::from_micros(micros));
        }
    }
}
