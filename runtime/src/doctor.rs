//! Looks at what a node would start on, without starting one: the backend, the place of modules, the data folder.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use skep_model::limits::RESERVE_BYTES_MAX;
use skep_topic::redis::{Finding, Severity};

use crate::settings::{ArtifactSettings, BackendSettings, Settings};
use crate::store::{Access, Place, probe};
use crate::wording::count;

/// A finding and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub part: &'static str,
    pub finding: Finding,
}

#[derive(Debug, Default)]
pub struct Report {
    pub found: Vec<Found>,
    /// What becomes of an acknowledged submit; `None` where that could not be found out.
    pub survives: Option<String>,
}

impl Report {
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.found.iter().filter(|f| f.finding.severity == severity).count()
    }

    pub(crate) fn say(&mut self, part: &'static str, severity: Severity, what: impl Into<String>, remedy: &str) {
        self.found.push(Found {
            part,
            finding: Finding {
                severity,
                what: what.into(),
                remedy: remedy.to_owned(),
            },
        });
    }
}

const BACKEND: &str = "backend";
const ARTIFACTS: &str = "artifacts";
const DATA: &str = "data";
const MODELS: &str = "models";
const TENANTS: &str = "tenants";

/// Asks everything that there is to ask. What fails is a finding.
pub async fn examine(settings: &Settings, access: Access) -> Report {
    let mut report = Report::default();
    for warning in &settings.warnings {
        report.say("settings", Severity::Warn, warning, "");
    }
    backend(settings, &mut report).await;
    artifacts(settings, access, &mut report).await;
    models(settings, &mut report);
    match skep_engine::apart::missing() {
        None => report.say(
            TENANTS,
            Severity::Fine,
            "may have processes of their own (`--isolation process`)",
            "",
        ),
        Some(what) => report.say(
            TENANTS,
            Severity::Warn,
            format!("none can have a process of its own (`--isolation process`): this kernel has {what}"),
            "use Linux 5.13 or newer, with Landlock among its security modules and seccomp filters",
        ),
    }
    match settings.data.clone() {
        Some(dir) => {
            let looked = tokio::task::spawn_blocking(move || folder(&dir)).await;
            let findings = looked.unwrap_or_default();
            report
                .found
                .extend(findings.into_iter().map(|finding| Found { part: DATA, finding }));
        }
        None => report.say(DATA, Severity::Fine, "no folder is named, none was looked at", ""),
    }
    report
}

async fn backend(settings: &Settings, report: &mut Report) {
    let redis = match &settings.backend {
        BackendSettings::Embedded => {
            report.say(BACKEND, Severity::Fine, "embedded, in the data folder", "");
            report.survives = Some(
                "durable on this disk: survives kill -9 and, as far as the disk keeps its promises, power cuts; is lost \
                 only with the disk"
                    .to_owned(),
            );
            return;
        }
        BackendSettings::Redis(redis) => redis,
    };
    match skep_topic::redis::probe(&redis.options([0; 8])).await {
        Ok((findings, survives)) => {
            let refused = findings.iter().any(|f| f.severity == Severity::Refuse);
            report
                .found
                .extend(findings.into_iter().map(|finding| Found { part: BACKEND, finding }));
            // Nothing is acknowledged where no node starts.
            report.survives = (!refused).then(|| survives.to_string());
        }
        Err(e) => report.say(BACKEND, Severity::Refuse, e.to_string(), ""),
    }
}

async fn artifacts(settings: &Settings, access: Access, report: &mut Report) {
    if settings.artifacts == ArtifactSettings::Own {
        report.say(ARTIFACTS, Severity::Fine, "in the data folder", "");
        return;
    }
    let tried = async {
        // Its own folder is not needed: artifacts are elsewhere.
        let place = Place::open(&settings.artifacts, Path::new(""), access)?;
        probe(&place).await
    };
    match tried.await {
        Ok(took) => {
            let ms = |d: Duration| format!("{:.1}", d.as_secs_f64() * 1e3);
            let what = format!(
                "{}: creates in {} ms, refuses a second create, reads in {} ms, deletes in {} ms",
                settings.artifacts,
                ms(took.create),
                ms(took.read),
                ms(took.delete)
            );
            report.say(ARTIFACTS, Severity::Fine, what, "");
        }
        Err(trouble) => report.say(ARTIFACTS, Severity::Refuse, trouble.what, &trouble.remedy),
    }
}

fn models(settings: &Settings, report: &mut Report) {
    let models = &settings.models;
    match models.open() {
        Ok(backend) => {
            let what = format!(
                "{} {}, {}, {} MiB for what is loaded",
                backend.name(),
                backend.version(),
                count(models.threads() as u64, "thread"),
                models.memory_bytes >> 20
            );
            report.say(MODELS, Severity::Fine, what, "");
        }
        Err(why) => report.say(
            MODELS,
            Severity::Refuse,
            why,
            "name the file libonnxruntime.so.* of a version from 1.22 on with --onnxruntime, or leave it out",
        ),
    }
}

/// Less than this and the embedded backend soon refuses work.
const SPACE_LOW_BYTES: u64 = 1 << 30;
/// A flush that takes longer holds up every acknowledgement.
const FLUSH_SLOW: Duration = Duration::from_millis(30);
/// Median of so many.
const FLUSHES: usize = 7;

fn folder(data: &Path) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut say = |severity, what: String, remedy: &str| {
        out.push(Finding {
            severity,
            what,
            remedy: remedy.to_owned(),
        });
    };
    let shown = data.display();
    // What is not there yet is made by the node; the disk below it can be looked at.
    let Some(dir) = data.ancestors().map(or_here).find(|dir| dir.exists()) else {
        say(Severity::Refuse, format!("{shown} lies nowhere"), "look at --data");
        return out;
    };
    let fresh = dir != or_here(data);
    let Ok(meta) = std::fs::metadata(dir) else {
        say(
            Severity::Refuse,
            format!("cannot look at {}", dir.display()),
            "look at --data",
        );
        return out;
    };
    if !meta.is_dir() {
        say(
            Severity::Refuse,
            format!("{} is no folder", dir.display()),
            "look at --data",
        );
        return out;
    }
    if !fresh && meta.mode() & 0o077 != 0 {
        say(
            Severity::Warn,
            format!("others may read {shown}"),
            "give skep a folder of its own, with mode 0700",
        );
    }
    match flush_time(dir) {
        Err(e) => {
            let remedy = "give this user the right to write there, or look at --data";
            say(
                Severity::Refuse,
                format!("cannot write in {}: {e}", dir.display()),
                remedy,
            );
            return out;
        }
        Ok(median) => {
            let begin = if fresh {
                format!("{shown} will be made; ")
            } else {
                String::new()
            };
            let what = format!("{begin}a flush takes {:.1} ms", median.as_secs_f64() * 1e3);
            match median < FLUSH_SLOW {
                true => say(Severity::Fine, what, ""),
                false => say(
                    Severity::Warn,
                    format!("{what}: on the embedded backend each acknowledgement waits for one"),
                    "use a disk that flushes faster",
                ),
            }
        }
    }
    match rustix::fs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let what = format!("{} MiB are free", free >> 20);
            let severity = match free {
                free if free < RESERVE_BYTES_MAX => Severity::Refuse,
                free if free < SPACE_LOW_BYTES => Severity::Warn,
                _ => Severity::Fine,
            };
            say(
                severity,
                what,
                if severity == Severity::Fine {
                    ""
                } else {
                    "make room on that disk"
                },
            );
        }
        Err(e) => say(
            Severity::Warn,
            format!("cannot tell what is free: {e}"),
            "look at the disk",
        ),
    }
    out
}

fn or_here(dir: &Path) -> &Path {
    if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    }
}

fn flush_time(dir: &Path) -> std::io::Result<Duration> {
    let mut file = tempfile::Builder::new().prefix(".skep-doctor-").tempfile_in(dir)?;
    let mut took = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.as_file().sync_data()?;
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took[FLUSHES / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(findings: &[Finding]) -> Severity {
        findings.iter().map(|f| f.severity).max().unwrap()
    }

    #[test]
    fn folders() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = folder(&dir.path().join("not/yet"));
        assert!(fresh[0].what.contains("will be made"), "{fresh:?}");
        assert!(!dir.path().join("not").exists(), "nothing is made");
        assert_ne!(worst(&fresh), Severity::Refuse, "{fresh:?}");
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let found = folder(&open);
        assert!(found[0].what.contains("others may read"), "{found:?}");
        assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0, "nothing is left");
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(worst(&folder(&file)), Severity::Refuse);
        let found = folder(Path::new("/proc/skep"));
        assert_eq!(worst(&found), Severity::Refuse, "{found:?}");
        assert!(found[0].remedy.contains("--data"), "{found:?}");
    }
}
