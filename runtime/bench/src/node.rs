//! Servers under measurement, each in a process of its own: started, asked about their use of the machine, killed by pid.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use skep_proto::v1;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::push_module_request::Part;
use tonic::transport::Channel;

pub struct Server {
    child: Child,
    pub url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only our own child; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// The raw echo: this very program in another role.
    pub fn echo() -> anyhow::Result<Self> {
        Self::spawn(Command::new(std::env::current_exe()?).arg("echo-server"), "serves ")
    }

    pub fn skep(skep: &Path, data: &Path) -> anyhow::Result<Self> {
        Self::skep_with(skep, data, &[])
    }

    pub fn skep_with(skep: &Path, data: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::skep_at(skep, data, env, "127.0.0.1:0")
    }

    pub fn skep_at(skep: &Path, data: &Path, env: &[(&str, &str)], listen: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(skep);
        command
            .envs(env.iter().copied())
            .args([
                "serve",
                "--listen",
                listen,
                "--no-admin",
                "--sample-ratio",
                "0",
                "--data",
            ])
            .arg(data);
        Self::spawn(&mut command, "serves ")
    }

    /// `says`: what stands in front of its address in the line that tells it.
    pub fn spawn(command: &mut Command, says: &str) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let mut out = BufReader::new(child.stdout.take().context("piped")?);
        let mut line = String::new();
        while !line.contains(says) {
            line.clear();
            if out.read_line(&mut line)? == 0 {
                bail!("{command:?} ended at once");
            }
        }
        let at = line.find(says).context("a line with its address")?;
        let url = line[at + says.len()..].trim().to_owned();
        // Keeps the pipe open.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Ok(Self { child, url })
    }

    /// As an operator stops it: it may write what it has.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status()?;
        if !asked.success() {
            bail!("it cannot be told to stop");
        }
        self.child.wait()?;
        Ok(())
    }

    pub async fn keeper(&self) -> anyhow::Result<BeekeeperClient<Channel>> {
        Ok(BeekeeperClient::connect(self.url.clone()).await?)
    }

    /// CPU time since its start, from the kernel's ticks of 10 ms.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    pub fn rss_mb(&self) -> anyhow::Result<f64> {
        self.proc_number("status", "VmRSS:").map(|kb| kb / 1024.0)
    }

    pub fn pss_mb(&self) -> anyhow::Result<f64> {
        self.proc_number("smaps_rollup", "Pss:").map(|kb| kb / 1024.0)
    }

    pub fn written_bytes(&self) -> anyhow::Result<f64> {
        self.proc_number("io", "write_bytes:")
    }

    /// The most memory that it had so far.
    pub fn peak_mb(&self) -> anyhow::Result<f64> {
        self.proc_number("status", "VmHWM:").map(|kb| kb / 1024.0)
    }

    /// How often its threads went on after a wait.
    pub fn woken(&self) -> anyhow::Result<f64> {
        let mut woken = 0.0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?.file_name();
            let of = format!("{}/task/{}", self.child.id(), thread.to_string_lossy());
            woken += proc_number(&of, "status", "voluntary_ctxt_switches:")?;
        }
        Ok(woken)
    }

    fn proc_number(&self, file: &str, name: &str) -> anyhow::Result<f64> {
        proc_number(&self.child.id().to_string(), file, name)
    }
}

/// A size that the kernel tells of a process in kB.
pub fn proc_mb(process: &str, file: &str, name: &str) -> anyhow::Result<f64> {
    proc_number(process, file, name).map(|kb| kb / 1024.0)
}

fn proc_number(process: &str, file: &str, name: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/{file}"))?;
    let line = text
        .lines()
        .find(|l| l.starts_with(name))
        .with_context(|| format!("{file} has {name}"))?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// CPU time of a process since its start, from the kernel's ticks of 10 ms.
pub fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after = stat.rsplit(") ").next().context("stat")?;
    let ticks: u64 = after
        .split(' ')
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap_or(0))
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}

pub async fn push(keeper: &mut BeekeeperClient<Channel>, name: &str, wasm: &[u8]) -> anyhow::Result<()> {
    let header = v1::PushHeader {
        name: name.to_owned(),
        size: wasm.len() as u64,
        ..v1::PushHeader::default()
    };
    let mut parts = vec![v1::PushModuleRequest {
        part: Some(Part::Header(header)),
    }];
    parts.extend(wasm.chunks(256 << 10).map(|chunk| v1::PushModuleRequest {
        part: Some(Part::Chunk(chunk.to_vec().into())),
    }));
    keeper.push_module(tokio_stream::iter(parts)).await?;
    Ok(())
}

pub async fn apply(keeper: &mut BeekeeperClient<Channel>, manifest: &str) -> anyhow::Result<()> {
    let call = v1::ApplySwarmRequest {
        manifest: manifest.to_owned(),
        ..v1::ApplySwarmRequest::default()
    };
    keeper.apply_swarm(call).await?;
    Ok(())
}

/// Waits until the last stage has processed `messages` and nothing is left.
pub async fn processed(keeper: &mut BeekeeperClient<Channel>, swarm: &str, messages: u64) -> anyhow::Result<Instant> {
    loop {
        let call = v1::DescribeSwarmRequest {
            name: swarm.to_owned(),
            count_keys: false,
        };
        let told = keeper.describe_swarm(call).await?.into_inner();
        let dead: u64 = told.stages.iter().map(|s| s.dead).sum();
        if dead > 0 {
            bail!("{dead} dead letters in {swarm}: {:?}", told.stages);
        }
        let last = told.stages.last().context("a stage")?;
        if last.processed >= messages && told.stages.iter().all(|s| s.unread + s.parked == 0) {
            return Ok(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn flushes(keeper: &mut BeekeeperClient<Channel>) -> anyhow::Result<u64> {
    Ok(keeper.node(v1::NodeRequest {}).await?.into_inner().flushes)
}
