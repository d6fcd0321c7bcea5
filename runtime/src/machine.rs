//! Looks at the machine that a node would run on: the program itself, processor, kernel, memory, limits, clock, and what the settings name here:
//! ports, certificates, keys. What [`crate::doctor`] looks at comes behind it.
//!
//! Where a node does something at its start or at an upload that a machine may refuse, that very thing is done, rather than asked for by the
//! kernel's version: a compiler process confines itself, native code is mapped and called, ports are taken and given back.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rustix::process::{Resource, getrlimit};
use sha2::{Digest as _, Sha256};
use skep_engine::{CompileError, Compiler, Engine, OPEN_FILES_WANTED, confined};
use skep_model::Bytes;
use skep_model::env::OsEntropy;
use skep_topic::redis::Severity;

use crate::doctor::{self, Report};
use crate::level::Build;
use crate::node::{self, NodeSettings};
use crate::oidc;
use crate::secrets::{KeyPlace, Keys};
use crate::settings::Settings;
use crate::store::Access;
use crate::tls::{Term, Tls, TlsFiles};
use crate::wording::time;

const PROGRAM: &str = "program";
const PROCESSOR: &str = "processor";
const KERNEL: &str = "kernel";
const MEMORY: &str = "memory";
const LIMITS: &str = "limits";
const CLOCK: &str = "clock";
const PORTS: &str = "ports";
const TLS: &str = "tls";
const KEYS: &str = "keys";
const TOKENS: &str = "tokens";
const DATA: &str = "data";

/// A page of a guest's memory, and so the largest page of a machine that guests' memories can be mapped in.
const WASM_PAGE_BYTES: usize = 64 << 10;
/// The page of the machines that skep was tried on.
const USUAL_PAGE_BYTES: usize = 4 << 10;
/// What compiling a Python Bee needs (`CompilerLimits::memory_bytes`), and what a node needs beside it, rounded up.
const MEMORY_LOW_BYTES: u64 = 512 << 20;
/// This program is younger than that (2026-11-01), so a clock that shows an earlier time is slow.
const YOUNGER_THAN_S: u64 = 1_793_491_200;
/// … and it is not in use so long after.
const NO_LONGER_AFTER_S: u64 = YOUNGER_THAN_S + 30 * 31_556_952;
/// Whoever renews certificates does so earlier than this before their end: Let's Encrypt's clients a month, cert-manager a third of the term.
const TERM_LOW_S: i64 = 14 * 86_400;
/// A component without anything, which a compiler refuses once it has confined itself.
const NOTHING: &[u8] = b"\0asm\x0d\0\x01\0";

/// The program that looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// Of the bytes that run, even where another file took their place since; in lower-case hex.
    pub sha256: String,
}

impl Program {
    /// # Errors
    /// Without `/proc`, or where this user may not read the file that it runs.
    pub fn running() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("find this program's own file")?;
        let sha256 = digest(Path::new("/proc/self/exe")).context("read this program's own file")?;
        Ok(Self { path, sha256 })
    }
}

fn digest(path: &Path) -> std::io::Result<String> {
    use std::fmt::Write as _;
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => digest.update(&chunk[..n]),
        }
    }
    Ok(digest.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Asks everything that there is to ask, [`doctor::examine`] included. What fails is a finding. `expected`: the program's SHA-256 in lower-case hex.
pub async fn examine(
    settings: &Settings,
    program: &Program,
    expected: Option<&str>,
    now: SystemTime,
    access: Access,
) -> Report {
    let mut report = Report::default();
    told_program(program, expected, &mut report);
    processor(&mut report);
    kernel(&mut report).await;
    told_memory(
        Memory::of(Path::new("/proc"), Path::new("/sys/fs/cgroup")),
        settings.models.memory_bytes,
        settings.module_memory_bytes,
        &mut report,
    );
    open_files(getrlimit(Resource::Nofile).maximum, &mut report);
    clock(now, &mut report);
    match settings.clone().node(None) {
        Ok(node) => of_settings(&node, now, &mut report).await,
        // `node` has no other error where this program's file was found.
        Err(why) => report.say(
            DATA,
            Severity::Warn,
            format!("{why}, so neither ports nor keys were looked at"),
            "give --data DIR or --config FILE, as `skep serve` gets them",
        ),
    }
    let beyond = doctor::examine(settings, access).await;
    report.found.extend(beyond.found);
    // Nothing is acknowledged where no node runs.
    report.survives = beyond.survives.filter(|_| report.count(Severity::Refuse) == 0);
    report
}

fn told_program(program: &Program, expected: Option<&str>, report: &mut Report) {
    let (version, path, sha256) = (Build::current().version, program.path.display(), &program.sha256);
    match expected {
        Some(expected) if expected != sha256 => report.say(
            PROGRAM,
            Severity::Refuse,
            format!("skep {version}, {path}: its SHA-256 is {sha256}, not {expected}"),
            "get the release's files again, and do not run this one",
        ),
        Some(_) => report.say(
            PROGRAM,
            Severity::Fine,
            format!("skep {version}, {path}, SHA-256 {sha256}, as expected"),
            "",
        ),
        None => report.say(
            PROGRAM,
            Severity::Fine,
            format!("skep {version}, {path}, SHA-256 {sha256}"),
            "",
        ),
    }
}

fn processor(report: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let page = rustix::param::page_size();
    let what = format!(
        "{cores} of {}, {}, pages of {} KiB",
        std::env::consts::ARCH,
        features(),
        page >> 10
    );
    let (severity, remedy) = of_page(page);
    report.say(PROCESSOR, severity, what, remedy);
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")) {
        report.say(
            PROCESSOR,
            Severity::Warn,
            "no AVX2 with FMA: models run by slower code",
            "in a virtual machine, hand the host's processor through; else take a machine from 2013 on for models",
        );
    }
}

fn of_page(bytes: usize) -> (Severity, &'static str) {
    match bytes {
        USUAL_PAGE_BYTES => (Severity::Fine, ""),
        larger if larger <= WASM_PAGE_BYTES => (
            Severity::Warn,
            "skep was tried with pages of 4 KiB only: try your Swarms before you rely on it",
        ),
        _ => (Severity::Refuse, "use a kernel with pages of at most 64 KiB"),
    }
}

/// Of those that code for this processor is made with.
fn features() -> String {
    let mut names: Vec<&str> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let all = [
            (has!("sse4.2"), "SSE4.2"),
            (has!("avx"), "AVX"),
            (has!("avx2"), "AVX2"),
            (has!("fma"), "FMA"),
            (has!("bmi2"), "BMI2"),
            (has!("avx512f"), "AVX-512"),
        ];
        names.extend(all.iter().filter(|(has, _)| *has).map(|(_, name)| name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        let all = [
            (has!("lse"), "LSE"),
            (has!("fp16"), "FP16"),
            (has!("dotprod"), "DotProd"),
            (has!("sve"), "SVE"),
        ];
        names.extend(all.iter().filter(|(has, _)| *has).map(|(_, name)| name));
    }
    match names.as_slice() {
        [] => "nothing beyond the least of its kind".to_owned(),
        some => some.join(" "),
    }
}

/// What of the kernel is needed is used, by the code that a node uses.
async fn kernel(report: &mut Report) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let what = format!("Linux {}", release.trim());
    match confined::missing() {
        None => report.say(KERNEL, Severity::Fine, format!("{what}, with seccomp filters"), ""),
        Some(missing) => report.say(
            KERNEL,
            Severity::Warn,
            format!("{what}: {missing}"),
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
    if hides_processes(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
        report.say(
            KERNEL,
            Severity::Warn,
            "/proc hides processes (hidepid), so no tenant can have one of its own: the node looks at their memory there",
            "mount /proc without hidepid for the node (under systemd, no ProtectProc=)",
        );
    }
    let told = |tried: Result<String, String>, remedy: &str, report: &mut Report| match tried {
        Ok(what) => report.say(KERNEL, Severity::Fine, what, ""),
        Err(what) => report.say(KERNEL, Severity::Refuse, what, remedy),
    };
    let compiler = "start it where processes may limit themselves: let prctl, seccomp, setrlimit and memfd_create through, and 1.5 GiB of \
                    address space";
    told(compiler_runs().await, compiler, report);
    let code = "let it have address space (no `ulimit -v`, vm.overcommit_memory not 2) and memory that is written first and run afterwards \
                (under systemd, MemoryDenyWriteExecute=no)";
    told(code_runs().await, code, report);
}

/// Whether `mounts`, as /proc/self/mounts has them, show a /proc that keeps processes from each other (proc(5): `hidepid`, by number or name).
fn hides_processes(mounts: &str) -> bool {
    let last = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .rfind(|words| words.get(1) == Some(&"/proc"));
    let options = last.and_then(|words| words.get(3).copied()).unwrap_or_default();
    options
        .split(',')
        .filter_map(|option| option.strip_prefix("hidepid="))
        .any(|how| !["0", "off"].contains(&how))
}

async fn compiler_runs() -> Result<String, String> {
    let local = NodeSettings::local(PathBuf::new()).map_err(|e| format!("{e:#}"))?;
    let limits = skep_engine::Settings::new(PathBuf::new()).compiler;
    let compiler = Compiler::new(local.compiler, vec!["compile-module".into()], limits);
    refused(compiler.compile(Bytes::from_static(NOTHING)).await.err())
}

/// What the compiler said to a component with nothing in it: it looked at it, if it is the component's fault.
fn refused(said: Option<CompileError>) -> Result<String, String> {
    match said {
        None => Ok("a compiler process limits itself and answers".to_owned()),
        Some(e) if e.code.is_permanent() && e.code != skep_engine::Code::OutOfMemory => refused(None),
        Some(e) => Err(format!("no compiler can run, so nothing can be uploaded: {e}")),
    }
}

async fn code_runs() -> Result<String, String> {
    // It makes no folder before something is kept there.
    let settings = skep_engine::Settings::new(PathBuf::from("/nonexistent/skep-self-check"));
    let engine = Engine::new(settings).map_err(|e| match e {
        // Without its remedy: what it names is nothing that a user can set.
        skep_engine::Error::Start(why) => format!("there is no address space for instances: {why}"),
        other => other.to_string(),
    })?;
    match engine.try_code().await {
        Ok(()) => Ok("address space for instances is there, and native code runs".to_owned()),
        Err(why) => Err(format!("native code does not run: {why}")),
    }
}

/// What there is of memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    total: u64,
    /// The least that a group of this process may use, if any says.
    group: Option<u64>,
}

impl Memory {
    /// By what the kernel tells under `/proc` and `/sys/fs/cgroup`: groups of version 2, and of 1, each with those above it.
    fn of(proc: &Path, groups: &Path) -> Option<Self> {
        let info = std::fs::read_to_string(proc.join("meminfo")).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let total = line
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1_024)?;
        let member = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mut least = None;
        for line in member.lines() {
            // `number:controllers:path`
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let (root, file) = match controllers {
                "" if number == "0" => (groups.to_owned(), "memory.max"),
                _ if controllers.split(',').any(|c| c == "memory") => (groups.join("memory"), "memory.limit_in_bytes"),
                _ => continue,
            };
            // A container may see its group as the root, or by a path that is not there: then those above it count.
            for path in Path::new(path.trim_start_matches('/')).ancestors() {
                let text = std::fs::read_to_string(root.join(path).join(file)).unwrap_or_default();
                // `max` is no number, and the first version's "none" is more than any machine has.
                if let Ok(bytes) = text.trim().parse::<u64>() {
                    least = Some(least.map_or(bytes, |least: u64| least.min(bytes)));
                }
            }
        }
        Some(Self {
            total,
            group: least.filter(|bytes| *bytes < total),
        })
    }

    fn usable(self) -> u64 {
        self.group.unwrap_or(self.total)
    }
}

fn told_memory(memory: Option<Memory>, models: u64, modules: u64, report: &mut Report) {
    let Some(memory) = memory else {
        report.say(MEMORY, Severity::Warn, "cannot tell how much there is", "mount /proc");
        return;
    };
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let what = match memory.group {
        Some(group) => format!("{} for this control group, of {}", mib(group), mib(memory.total)),
        None => mib(memory.total),
    };
    let budget = models.saturating_add(modules);
    if memory.usable() < MEMORY_LOW_BYTES {
        let what = format!("{what}: too little to compile Bees of Python");
        report.say(
            MEMORY,
            Severity::Warn,
            what,
            "compile on another node of the store, or give it 512 MiB",
        );
    } else if memory.usable() < budget {
        let what = format!(
            "{what}, and models and modules may take {} and {} of it",
            mib(models),
            mib(modules)
        );
        report.say(
            MEMORY,
            Severity::Warn,
            what,
            "give --model-memory and --module-memory that leave room for what runs",
        );
    } else {
        report.say(MEMORY, Severity::Fine, what, "");
    }
}

fn open_files(most: Option<u64>, report: &mut Report) {
    match most {
        Some(most) if most < OPEN_FILES_WANTED => report.say(
            LIMITS,
            Severity::Warn,
            format!("{most} open files at most: one goes to each module in memory and to each connection"),
            &format!("allow {OPEN_FILES_WANTED}: `ulimit -Hn`, or LimitNOFILE= of the unit"),
        ),
        Some(most) => report.say(LIMITS, Severity::Fine, format!("{most} open files"), ""),
        None => report.say(LIMITS, Severity::Fine, "any number of open files", ""),
    }
}

fn clock(now: SystemTime, report: &mut Report) {
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = time(now_s.saturating_mul(1_000));
    let fault = match now_s {
        early if early < YOUNGER_THAN_S => "before this program was made",
        late if late > NO_LONGER_AFTER_S => "more than thirty years after this program was made",
        _ => {
            report.say(CLOCK, Severity::Fine, format!("{shown} UTC"), "");
            return;
        }
    };
    report.say(
        CLOCK,
        Severity::Refuse,
        format!("it is {shown} UTC, {fault}"),
        "set the clock: timers, ends of tokens and certificates go by it",
    );
}

/// What the settings name on this machine.
async fn of_settings(settings: &NodeSettings, now: SystemTime, report: &mut Report) {
    if settings.in_use() {
        let what = format!(
            "a node runs on {} already, so its ports were not tried",
            settings.data.display()
        );
        report.say(PORTS, Severity::Warn, what, "");
    } else {
        ports(settings, report).await;
    }
    reach(settings, report);
    if let Some(files) = &settings.tls {
        certificates(files, now, report);
    }
    keys(settings, report);
    owner(&settings.data, report);
    if let Some(settings) = &settings.oidc {
        match oidc::Reader::new(settings) {
            Ok(_) => report.say(
                TOKENS,
                Severity::Fine,
                format!("of {} are taken; it was not asked", settings.issuer),
                "",
            ),
            Err(why) => report.say(
                TOKENS,
                Severity::Refuse,
                format!("{why:#}"),
                "look at the flags that begin with --oidc",
            ),
        }
    }
}

async fn ports(settings: &NodeSettings, report: &mut Report) {
    let all = [(Some(settings.listen), "--listen"), (settings.admin, "--admin")];
    for (address, flag) in all.into_iter().filter_map(|(address, flag)| Some((address?, flag))) {
        match node::bind(address, flag, &settings.topics()).await {
            Ok(_) => report.say(PORTS, Severity::Fine, format!("{address} ({flag}) is free"), ""),
            // Its remedy is in its words.
            Err(why) => report.say(PORTS, Severity::Refuse, format!("{why:#}"), ""),
        }
    }
}

/// Whether others reach it, and how it is guarded then.
fn reach(settings: &NodeSettings, report: &mut Report) {
    let (listen, admin) = (settings.listen, settings.admin);
    let severity = |allowed| if allowed { Severity::Warn } else { Severity::Refuse };
    let remedy = "or listen on 127.0.0.1; or, where nobody else can reach it, give --allow-insecure";
    if let Some(missing) = node::insecure(settings.tls.is_some(), listen, false) {
        let what = format!("{listen} is reached from other machines, without {missing}");
        report.say(TLS, severity(settings.allow_insecure), what, remedy);
    }
    if !listen.ip().is_loopback() && settings.bootstrap_token.is_none() {
        report.say(
            TOKENS,
            Severity::Warn,
            format!("{listen} is reached from other machines, and no --bootstrap-token is given"),
            "give one, unless this store has tokens: without any a node does not start there",
        );
    }
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        report.say(
            PORTS,
            Severity::Warn,
            format!("metrics are for everybody who reaches {admin}"),
            "keep others from it by the network, or give --admin 127.0.0.1:4021",
        );
    }
    if let Some(file) = settings.bootstrap_token.as_deref().filter(|file| open_to_others(file)) {
        let file = file.display();
        report.say(
            TOKENS,
            Severity::Warn,
            format!("others may read the operator's token in {file}"),
            &format!("chmod 600 {file}"),
        );
    }
}

fn certificates(files: &TlsFiles, now: SystemTime, report: &mut Report) {
    // What the node itself does with them at its start.
    if let Err(why) = Tls::load(files.clone()) {
        report.say(
            TLS,
            Severity::Refuse,
            format!("{why:#}"),
            "look at --tls-cert, --tls-key, --client-ca and --tls-ca",
        );
        return;
    }
    // A group may: it is how orchestrators hand over secrets.
    if is_open(&files.key, 0o007) {
        let key = files.key.display();
        report.say(
            TLS,
            Severity::Warn,
            format!("everybody on this machine may read the key {key}"),
            &format!("chmod 600 {key}"),
        );
    }
    let now_s = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    match files.terms() {
        Ok(terms) => terms.iter().for_each(|term| told_term(term, now_s, report)),
        Err(why) => report.say(
            TLS,
            Severity::Refuse,
            format!("{why:#}"),
            "look at --tls-cert, --client-ca and --tls-ca",
        ),
    }
}

fn told_term(term: &Term, now_s: i64, report: &mut Report) {
    let date = |s: i64| {
        let shown = time(u64::try_from(s).unwrap_or(0).saturating_mul(1_000));
        shown.split(' ').next().unwrap_or_default().to_owned()
    };
    let (from, until) = (date(term.from_s), date(term.until_s));
    let which = format!("{} ({})", term.file.display(), term.subject);
    // Others' may be one of several, of which one is enough.
    let fault = if term.own { Severity::Refuse } else { Severity::Warn };
    let (severity, what, remedy) = if now_s > term.until_s {
        (
            fault,
            format!("{which} ended on {until}"),
            "renew it; the node takes the new one without a restart",
        )
    } else if now_s < term.from_s {
        (
            fault,
            format!("{which} begins on {from} only"),
            "look at this machine's clock, or take one that has begun",
        )
    } else if term.until_s - now_s < TERM_LOW_S {
        (Severity::Warn, format!("{which} ends on {until}"), "renew it")
    } else {
        (Severity::Fine, format!("{which} is good until {until}"), "")
    };
    report.say(TLS, severity, what, remedy);
}

fn keys(settings: &NodeSettings, report: &mut Report) {
    let place = settings.key_place();
    let named = match &place {
        KeyPlace::File(path) => format!("{} has the keys of secrets", path.display()),
        KeyPlace::Own(path) if path.exists() => format!("{} has the key of secrets", path.display()),
        KeyPlace::Own(_) => "the key of secrets is made when the first is set".to_owned(),
        KeyPlace::Nowhere => "no --secrets-key-file is given: secrets cannot be set".to_owned(),
    };
    match Keys::read(place, Arc::new(OsEntropy)) {
        Ok(_) => report.say(KEYS, Severity::Fine, named, ""),
        Err(why) => report.say(
            KEYS,
            Severity::Refuse,
            format!("{why:#}"),
            "look at --secrets-key-file and --data",
        ),
    }
    // What the artifact cache refuses at the start.
    for name in ["artifact.key", "cache"] {
        let path = settings.data.join(name);
        if open_to_others(&path) {
            let mode = if path.is_dir() { "700" } else { "600" };
            let path = path.display();
            report.say(
                KEYS,
                Severity::Refuse,
                format!("others may read {path}, and compiled modules must be private"),
                &format!("chmod {mode} {path}"),
            );
        }
    }
}

fn open_to_others(path: &Path) -> bool {
    is_open(path, 0o077)
}

fn is_open(path: &Path, to: u32) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.mode() & to != 0)
}

fn owner(data: &Path, report: &mut Report) {
    let Ok(found) = std::fs::metadata(data) else {
        return;
    };
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me {
        report.say(
            DATA,
            Severity::Warn,
            format!(
                "{} belongs to the user of number {}, and this is number {me}",
                data.display(),
                found.uid()
            ),
            "run this as the user that the node runs as, or give that one the folder",
        );
    }
}

#[cfg(test)]
mod tests;
