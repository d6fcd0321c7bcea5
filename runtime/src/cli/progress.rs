//! Progress on stderr: spinners and bars on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where progress is shown.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Live,
    Lines,
    Silent,
}

impl Progress {
    /// Live on a terminal, lines elsewhere.
    #[must_use]
    pub fn stderr() -> Self {
        let style = if std::io::stderr().is_terminal() {
            Style::Live
        } else {
            Style::Lines
        };
        Self { style }
    }

    #[must_use]
    pub fn silent() -> Self {
        Self { style: Style::Silent }
    }

    /// Begins a step of unknown length.
    #[must_use]
    pub fn step(&self, what: impl Into<String>) -> Step {
        self.begin(what.into(), None)
    }

    /// Begins a step of so many bytes or messages.
    #[must_use]
    pub fn count(&self, what: impl Into<String>, total: u64) -> Step {
        self.begin(what.into(), Some(total))
    }

    /// A line of its own.
    pub fn say(&self, line: &str) {
        if self.style != Style::Silent {
            eprintln!("{line}");
        }
    }

    fn begin(&self, what: String, total: Option<u64>) -> Step {
        let bar = (self.style == Style::Live).then(|| {
            let (bar, template) = match total {
                Some(total) => (
                    ProgressBar::new(total),
                    "{spinner:.yellow} {msg} {wide_bar:.yellow} {human_pos}/{human_len}",
                ),
                None => (ProgressBar::new_spinner(), "{spinner:.yellow} {msg}"),
            };
            bar.set_draw_target(ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if self.style == Style::Lines {
            eprintln!("{what} …");
        }
        Step {
            what,
            bar,
            style: self.style,
            since: Instant::now(),
            ended: false,
        }
    }
}

/// Something under way. Dropped without [`Step::done`], it vanishes: the error that follows says more.
#[derive(Debug)]
pub struct Step {
    what: String,
    bar: Option<ProgressBar>,
    style: Style,
    since: Instant,
    ended: bool,
}

impl Step {
    /// What it is doing now; shown on a terminal only.
    pub fn note(&self, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {note}", self.what));
        }
    }

    /// For lines of their own while this step is shown.
    #[must_use]
    pub fn voice(&self) -> Voice {
        Voice {
            bar: self.bar.clone(),
            style: self.style,
        }
    }

    /// So much is done.
    pub fn at(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Ends it with a line: what was done, something about it, and the time it took.
    pub fn done(mut self, about: &str) {
        self.ended = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.since.elapsed();
        let took = if took.as_secs() < 1 {
            format!("{} ms", took.as_millis())
        } else {
            format!("{:.1} s", took.as_secs_f64())
        };
        let about = if about.is_empty() {
            String::new()
        } else {
            format!(": {about}")
        };
        match self.style {
            Style::Live => eprintln!("\u{1b}[32m✓\u{1b}[0m {}{about} \u{1b}[2m({took})\u{1b}[0m", self.what),
            Style::Lines => eprintln!("{}{about} ({took})", self.what),
            Style::Silent => {}
        }
    }
}

/// Says lines beside a step without tearing what shows it.
#[derive(Debug, Clone)]
pub struct Voice {
    bar: Option<ProgressBar>,
    style: Style,
}

impl Voice {
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None if self.style != Style::Silent => eprintln!("{line}"),
            None => {}
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let (false, Some(bar)) = (self.ended, &self.bar) {
            bar.finish_and_clear();
        }
    }
}
