//! Lengths of time as Go writes them: `24h`, `1h30m`, `10s`, `500ms`.

use std::time::Duration;

/// The error for a text that is no length of time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a length of time above zero: {0:?} (want one such as 24h, 1h30m or 10s)")]
pub struct ParseDurationError(String);

/// Reads a length of time above zero, in whole hours, minutes, seconds and milliseconds.
///
/// # Errors
/// [`ParseDurationError`] shows the text and a good example.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    sum(text)
        .filter(|total| !total.is_zero())
        .ok_or_else(|| ParseDurationError(text.to_owned()))
}

/// Reads a length of time as [`parse_duration`]; `0` is allowed as well.
///
/// # Errors
/// [`ParseDurationError`] shows the text and a good example.
pub fn parse_duration_or_zero(text: &str) -> Result<Duration, ParseDurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text)
}

fn sum(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (count, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let millis = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        let part = count.parse::<u64>().ok()?.checked_mul(millis)?;
        total = total.checked_add(Duration::from_millis(part))?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read() {
        for (text, seconds) in [
            ("24h", 86_400.0),
            ("1h30m", 5_400.0),
            ("10s", 10.0),
            ("500ms", 0.5),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn none_is_zero_where_it_may_be() {
        assert_eq!(parse_duration_or_zero("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration_or_zero("10m"), parse_duration("10m"));
        assert!(parse_duration("0").is_err() && parse_duration_or_zero("0x").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "0s",
            "24",
            "h",
            "1d",
            "-1h",
            "1h 2m",
            "99999999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
