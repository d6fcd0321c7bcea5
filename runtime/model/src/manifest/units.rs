//! Durations and sizes as people write them.

const DAY_MS: u64 = 24 * 3_600_000;

/// `30s`, `500ms`, `2m`, `1h`, `30d` in milliseconds.
#[must_use]
pub fn duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        _ => return None,
    };
    number.checked_mul(unit_ms)
}

/// `64MiB`, `512KiB`, `1GiB`, `100KB`, `10B` in bytes.
#[must_use]
pub fn size_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit_bytes = match unit {
        "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit_bytes)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|b| !b.is_ascii_digit())?;
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start_matches(' ')))
}

/// The shortest exact way to write a duration; [`duration_ms`] reads it.
#[must_use]
pub fn show_duration(ms: u64) -> String {
    // One day is better known as `24h`.
    if ms > DAY_MS && ms.is_multiple_of(DAY_MS) {
        return format!("{}d", ms / DAY_MS);
    }
    for (unit_ms, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms != 0 && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// The shortest exact way to write a size; [`size_bytes`] reads it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_go_both_ways() {
        for text in ["30s", "500ms", "2m", "1h", "1500ms", "24h", "30d", "25h"] {
            assert_eq!(show_duration(duration_ms(text).unwrap()), text);
        }
        for text in ["64MiB", "512KiB", "1GiB", "1TiB", "1500B"] {
            assert_eq!(show_size(size_bytes(text).unwrap()), text);
        }
        assert_eq!(size_bytes("1 MiB"), Some(1 << 20));
        assert_eq!(size_bytes("2MB"), Some(2_000_000));
    }

    #[test]
    fn what_is_not_a_unit_is_refused() {
        for bad in [
            "",
            "s",
            "1",
            "1.5s",
            "-1s",
            "1 parsec",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(duration_ms(bad), None, "{bad}");
            assert_eq!(size_bytes(bad), None, "{bad}");
        }
    }
}
