//! Figures for people: sizes, ages, spans, rates; and spans as people write them.
//!
//! Pure functions; the present is passed in. JSON output never goes through here.

use std::time::Duration;

use bytesize::ByteSize;
use vbr_api::{Moment, Retry};

/// `1.5 MiB`: binary units.
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// `1.5M`, `256M`, `10.0G`: binary units in five characters at most; for columns.
pub fn size_short(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// `6.4x`, `45x`: how many bytes there were for each one that was sent.
pub fn ratio(plain: u64, sent: u64) -> String {
    if plain == 0 || sent == 0 {
        return "-".into();
    }
    match plain as f64 / sent as f64 {
        ratio if ratio >= 999.5 => ">999x".into(),
        ratio if ratio >= 9.95 => format!("{ratio:.0}x"),
        ratio => format!("{ratio:.1}x"),
    }
}

/// `8.0 Mbit/s`: decimal units, as links are sold.
pub fn rate(bits_a_second: u64) -> String {
    const UNITS: [&str; 4] = ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    if bits_a_second < 1_000 {
        return format!("{bits_a_second} bit/s");
    }
    let mut value = bits_a_second as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `450 ms`, `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`.
pub fn span(ms: u64) -> String {
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        _ => format!("{big} {big_unit} {small} {small_unit}"),
    };
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms} ms"),
        1..=9 => format!("{:.1} s", ms as f64 / 1e3),
        10..=59 => format!("{seconds} s"),
        60..=3_599 => pair(seconds / 60, "min", seconds % 60, "s"),
        3_600..=86_399 => pair(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// The largest unit alone: `3 min`; for columns.
pub fn span_short(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..=59 => format!("{seconds} s"),
        seconds @ 60..=3_599 => format!("{} min", seconds / 60),
        seconds @ 3_600..=172_799 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// The same without a blank: `3m`; for narrow columns.
pub fn span_tiny(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..=99 => format!("{seconds}s"),
        seconds @ 100..=5_999 => format!("{}m", seconds / 60),
        seconds @ 6_000..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `3 min ago`; a moment in the future (another clock) counts as now.
pub fn age(moment: Moment, now: Moment) -> String {
    match between(moment, now) {
        0..=1_999 => "just now".into(),
        ms => format!("{} ago", span_short(ms)),
    }
}

/// `2026-11-22 19:05:01 UTC`
pub fn moment(moment: Moment) -> String {
    moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Milliseconds from `earlier` to `later`; 0 where the order is the other way round.
pub fn between(earlier: Moment, later: Moment) -> u64 {
    u64::try_from(later.as_millisecond().saturating_sub(earlier.as_millisecond())).unwrap_or(0)
}

/// `97.5 %`. Rounded down, so that 100 % is said only of all.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let tenths = u128::from(part.min(whole)) * 1_000 / u128::from(whole);
    match tenths {
        0 => "0 %".into(),
        1_000 => "100 %".into(),
        _ => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// The share of `plain` that did not have to be `sent`.
pub fn saved(sent: u64, plain: u64) -> String {
    percent(plain.saturating_sub(sent), plain)
}

/// `1 disk`, `2 disks`
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// What comes from elsewhere may not steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A span as [`parse_span`] reads it: `1h30m`, nothing lost.
pub fn exact_span(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut rest = ms;
    let mut text = String::new();
    for (unit, length) in units {
        let number = rest / length;
        rest %= length;
        if number > 0 {
            text += &format!("{number}{unit}");
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// A size as people write it: `500G` and `500GiB` are binary, as everything shown here is; `500GB` is decimal.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: say 500G, 1.5TiB or 800MB");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit = trimmed[end..].trim().to_ascii_lowercase();
    let (letter, decimal) = match unit.as_str() {
        "" | "b" => ("", false),
        unit => match unit.strip_suffix("ib").filter(|letter| !letter.is_empty()) {
            Some(letter) => (letter, false),
            None => unit.strip_suffix('b').map_or((unit, false), |letter| (letter, true)),
        },
    };
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == letter).ok_or_else(wrong)?;
    let bytes = number * if decimal { 1000f64 } else { 1024f64 }.powi(power as i32);
    // An exbibyte is enough.
    if bytes <= (1u64 << 60) as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A moment as people write it: a date (its beginning, UTC), or RFC 3339.
pub fn parse_moment(text: &str) -> Result<Moment, String> {
    let text = text.trim();
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_string() };
    whole.parse().map_err(|_| format!("{text:?} is not a date: say 2027-01-31 or 2027-01-31T12:00:00Z"))
}

/// A rate as [`parse_rate`] reads it: `8Mbit`, nothing lost.
pub fn exact_rate(bits_a_second: u64) -> String {
    let units = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000)];
    let whole = units.iter().find(|(_, factor)| bits_a_second > 0 && bits_a_second.is_multiple_of(*factor));
    whole.map_or(format!("{bits_a_second}bit"), |(unit, factor)| format!("{}{unit}", bits_a_second / factor))
}

/// Bits a second as people write them: `800kbit`, `8Mbit`, `1.5Gbit/s`. Units are decimal.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate: say bits a second like 800kbit, 8Mbit or 1Gbit");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit = trimmed[end..].trim().to_ascii_lowercase();
    let factor = match unit.strip_suffix("/s").unwrap_or(&unit) {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(wrong()),
    };
    let rate = (number * factor).round();
    if !(64e3..=1e12).contains(&rate) {
        return Err(format!("{text:?} is out of bounds: at least 64kbit, at most 1000Gbit"));
    }
    Ok(rate as u64)
}

/// Tries after a failure as [`parse_retry`] reads them: `3/5m`, or `0`.
pub fn retry(retry: Retry) -> String {
    match retry.count {
        0 => "0".into(),
        count => format!("{count}/{}", exact_span(retry.pause_ms)),
    }
}

/// Tries after a failure as people write them: how many, and the pause before the first: `3/5m`, `3`, `0`.
pub fn parse_retry(text: &str) -> Result<Retry, String> {
    let wrong =
        || format!("{text:?} does not say how often: say 3/5m (three times, the first after 5 min), or 0");
    let (count, pause) = text.split_once('/').map_or((text, None), |(count, pause)| (count, Some(pause)));
    let count = count.trim().parse().map_err(|_| wrong())?;
    let pause_ms = match pause {
        Some(pause) => u64::try_from(parse_span(pause)?.as_millis()).map_err(|_| wrong())?,
        None => Retry::default().pause_ms,
    };
    Ok(Retry { count, pause_ms })
}

/// A span as people write it: `90s`, `10m`, `1h30m`, `2d`, `500ms`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a span of time: say 90s, 10m, 1h30m or 2d");
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let word = &rest[digits..];
        let end = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
        let unit: u64 = match &word[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        rest = &word[end..];
    }
    // A century is enough, and keeps every deadline computable.
    if total > 100 * 366 * 86_400_000 {
        return Err(wrong());
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_572_864), "1.5 MiB");
        for (bytes, short) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (1_572_864, "1.5M"),
            (268_435_456, "256M"),
            (1_073_741_823, "1.0G"),
            (10 << 30, "10.0G"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(size_short(bytes), short);
        }
        assert_eq!(
            (ratio(64, 10), ratio(450, 10), ratio(10, 20)),
            ("6.4x".into(), "45x".into(), "0.5x".into())
        );
        assert_eq!((ratio(0, 7), ratio(1 << 30, 7)), ("-".into(), ">999x".into()));
        assert_eq!(
            (span_tiny(99_000), span_tiny(5_999_000), span_tiny(6_000_000)),
            ("99s".into(), "99m".into(), "1h".into())
        );
        assert_eq!(rate(999), "999 bit/s");
        assert_eq!(rate(8_000_000), "8.0 Mbit/s");
        assert_eq!(rate(999_999_999), "1.0 Gbit/s");
        assert_eq!(span(450), "450 ms");
        for ms in [0, 1, 900_000, 5_400_000, 90_061_001] {
            assert_eq!(parse_span(&exact_span(ms)), Ok(Duration::from_millis(ms)));
        }
        assert_eq!(exact_span(5_400_000), "1h30m");
        assert_eq!(span(1_500), "1.5 s");
        assert_eq!(span(185_000), "3 min 5 s");
        assert_eq!(span(7_200_000), "2 h");
        assert_eq!(span_short(3_599_000), "59 min");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(99_999, 100_000), "99.9 %");
        assert_eq!(percent(5, 0), "-");
        assert_eq!(saved(25, 100), "75.0 %");
        assert_eq!(saved(200, 100), "0 %");
        assert_eq!(count(1, "disk"), "1 disk");
        assert_eq!(count(0, "disk"), "0 disks");
    }

    #[test]
    fn retries() {
        for (text, count, pause_ms) in [("3/5m", 3, 300_000), ("1/1h30m", 1, 5_400_000), ("0", 0, 300_000)] {
            let read = parse_retry(text).unwrap();
            assert_eq!((read.count, read.pause_ms), (count, pause_ms));
            assert_eq!(retry(read), text);
        }
        assert_eq!(parse_retry("7").map(retry).as_deref(), Ok("7/5m"));
        for bad in ["", "x", "3/", "3/5", "/5m", "-1/5m", "3/5m/2"] {
            assert!(parse_retry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        let now: Moment = "2026-11-22T19:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<Moment>().unwrap();
        assert_eq!(age(at("2026-11-22T18:57:00Z"), now), "3 min ago");
        assert_eq!(age(at("2026-11-22T19:05:00Z"), now), "just now");
        assert_eq!(age(at("2026-11-19T19:00:00Z"), now), "3 d ago");
        assert_eq!(moment(now), "2026-11-22 19:00:00 UTC");
    }

    #[test]
    fn sizes_and_moments_in() {
        for (text, bytes) in [
            ("7", 7),
            ("2k", 2048),
            ("500G", 500 << 30),
            ("1.5TiB", 3 << 39),
            ("800MB", 800_000_000),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-5G", "5X", "5iB", "1e5", "9999999P", "."] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_moment("2027-01-31").map(moment), Ok("2027-01-31 00:00:00 UTC".into()));
        assert_eq!(
            parse_moment("2027-01-31T12:00:00+01:00").map(moment),
            Ok("2027-01-31 11:00:00 UTC".into())
        );
        assert!(parse_moment("tomorrow").is_err() && parse_moment("2027-02-30").is_err());
    }

    #[test]
    fn rates_in() {
        assert_eq!(parse_rate("8Mbit"), Ok(8_000_000));
        assert_eq!(parse_rate("1.5 Gbit/s"), Ok(1_500_000_000));
        assert_eq!(parse_rate("64kbit"), Ok(64_000));
        for bad in [
            "",
            "8",
            "Mbit",
            "8MB",
            "8Mbyte",
            "-8Mbit",
            "1.2.3Mbit",
            "0Mbit",
            "63kbit",
            "1001Gbit",
            "8Mbit/h",
        ] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        for rate in [64_000, 64_001, 8_000_000, 1_500_000_000, 2_000_000_000] {
            assert_eq!(parse_rate(&exact_rate(rate)), Ok(rate));
        }
        assert_eq!((exact_rate(8_000_000), exact_rate(1_500_000_000)), ("8Mbit".into(), "1500Mbit".into()));
    }

    #[test]
    fn spans_in() {
        assert_eq!(parse_span("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_span("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_span("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "10", "m", "10x", "-5s", "1.5h", "99999999999999999999s", "999999999d", "5s ", "1 h"]
        {
            if bad == "5s " {
                assert!(parse_span(bad).is_ok());
            } else {
                assert!(parse_span(bad).is_err(), "{bad}");
            }
        }
    }
}
