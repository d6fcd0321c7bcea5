//! What a command prints: tables for people, JSON for programs.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use serde_json::{Value, json};

use super::args::{Format, Global, When};
use super::failure::Outcome;
pub use crate::wording::time;

#[derive(Debug, Clone, Copy)]
pub struct Printer {
    pub format: Format,
    color: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Paint {
    Red,
    Green,
    Yellow,
    Dim,
}

impl Printer {
    pub fn new(global: &Global) -> Self {
        Self::on(global, std::io::stdout().is_terminal())
    }

    /// For what is told on stderr.
    pub fn stderr(global: &Global) -> Self {
        Self::on(global, std::io::stderr().is_terminal())
    }

    fn on(global: &Global, terminal: bool) -> Self {
        let color = match global.color {
            When::Always => true,
            When::Never => false,
            // https://no-color.org
            When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Self {
            format: global.output,
            color,
        }
    }

    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Red => 31,
            Paint::Green => 32,
            Paint::Yellow => 33,
            Paint::Dim => 2,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    pub fn line(&self, line: &str) -> Outcome {
        self.bytes(format!("{line}\n").as_bytes())
    }

    pub fn bytes(&self, bytes: &[u8]) -> Outcome {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    }

    /// One JSON document, indented.
    pub fn document(&self, value: &Value) -> Outcome {
        self.line(&format!("{value:#}"))
    }

    /// One JSON line of a stream.
    pub fn item(&self, value: &Value) -> Outcome {
        self.line(&value.to_string())
    }

    /// As wide as the terminal, or as its content where there is none.
    pub fn table(&self, header: &[&str], rows: Vec<Vec<String>>) -> Outcome {
        self.line(&laid_out(table(header, rows)))
    }

    /// A line a row: the last column ends in an ellipsis where the terminal ends.
    pub fn table_of_lines(&self, header: &[&str], rows: Vec<Vec<String>>) -> Outcome {
        let mut table = table(header, rows);
        let width = table.width().map_or(LINE_WIDTH, usize::from);
        cut(&mut table, width);
        self.line(&laid_out(table))
    }
}

/// What a line has where no terminal says its width.
const LINE_WIDTH: usize = 160;

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| shown(cell)).collect::<Vec<_>>());
    }
    table
}

/// All columns as wide as their content but the last, which gets the rest of `width`.
fn cut(table: &mut Table, width: usize) {
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    table.set_truncation_indicator("…");
    let last = table.column_iter().count().saturating_sub(1);
    for column in table.column_iter_mut().take(last) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for row in table.row_iter_mut() {
        row.max_height(1);
    }
}

fn laid_out(table: Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().strip_prefix(' ').unwrap_or_default().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Text of others, without what a terminal would obey.
pub fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let safe = !c.is_control() || c == '\n' || c == '\t';
            let escaped = (!safe).then(|| c.escape_default());
            safe.then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Bytes as a JSON document has them: JSON as itself, other text as a string, the rest as base16 under `hex`.
pub fn payload_json(bytes: &[u8]) -> Value {
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

pub fn payload_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => shown(text),
        Err(_) => format!("({} bytes) {}", bytes.len(), hex(&bytes[..bytes.len().min(64)])),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_end_without_blanks() {
        let rows = vec![
            vec!["a".into(), "1".into()],
            vec!["longer".into(), "22\u{1b}[31m".into()],
        ];
        let text = laid_out(table(&["NAME", "N"], rows));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].starts_with("NAME") && lines[1].starts_with("a ") && lines[2].starts_with("longer"),
            "{text}"
        );
        assert_eq!(lines[0].find('N'), Some(0));
        assert_eq!(lines[1].find('1'), lines[2].find('2'));
        assert!(
            !text.contains('\u{1b}') && lines.iter().all(|l| l.trim_end() == *l),
            "{text}"
        );
    }

    #[test]
    fn a_long_last_column_ends_in_an_ellipsis() {
        let rows = vec![
            vec!["17".into(), "a-stage".into(), "word ".repeat(40)],
            vec!["18".into(), "b".into(), "short".into()],
        ];
        let mut table = table(&["ID", "STAGE", "DETAIL"], rows);
        cut(&mut table, 60);
        let text = laid_out(table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].ends_with('…') && lines[1].starts_with("17  a-stage  word word"),
            "{text}"
        );
        assert!(lines.iter().all(|l| l.chars().count() <= 60), "{text}");
        assert!(lines[2].ends_with("short"), "{text}");
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(time(1_795_238_828_123), "2026-11-21 05:27:08.123");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00.000");
        assert_eq!(time(0), "-");
        assert_eq!(size(1_536), "1.5 KiB");
    }

    #[test]
    fn payloads_in_json() {
        assert_eq!(payload_json(b"{\"a\":1}"), json!({"a": 1}));
        assert_eq!(payload_json(b"hello"), json!("hello"));
        assert_eq!(payload_json(&[0xff, 0]), json!({"hex": "ff00"}));
    }
}
