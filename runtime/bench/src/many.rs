//! Many tenants, each with Bees that nobody else has, deployed and idle: what they cost a node, and how long the first call of one takes.
//! For `skep-bench many`, which takes a quarter of an hour for 1,000 tenants of 10 Bees: each module is compiled at its upload.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use skep_proto::v1;
use skep_proto::v1::access_client::AccessClient;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::push_module_request::Part;
use tonic::Request;
use tonic::transport::Channel;

use crate::load;
use crate::node::Server;
use crate::report::us;

/// Calls of Bees that were not called before, spread over all tenants.
const CALLS: usize = 400;
/// How long a node does nothing before its memory is read.
const IDLE: Duration = Duration::from_secs(10);

fn with<T>(token: &str, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let shown = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", shown);
    Ok(request)
}

/// The same component with other bytes: a custom section (id 0) at its end, which means nothing and is in the digest.
fn another(wasm: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = wasm.to_vec();
    // All lengths are below 128, so that each is one byte of LEB128.
    bytes.extend([0, name.len() as u8 + 2, 1, b'n']);
    bytes.extend(name.as_bytes());
    bytes
}

fn manifest(bees: usize, bee: &str) -> String {
    let stages =
        (0..bees).map(|at| format!("  - {{ name: b{at}, module: m{at}, bee: {bee}, input: {{ gateway: b{at} }} }}\n"));
    format!("name: own\nbees:\n{}", stages.collect::<String>())
}

/// `wasm`: a component with the Bee `bee`, which answers whatever it is sent.
pub async fn measure(skep: &Path, wasm: &Path, bee: &str, tenants: usize, bees: usize) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let wasm = std::fs::read(wasm)?;
    let server = Server::skep(skep, &data)?;
    let bootstrap = Command::new(skep)
        .args(["token", "bootstrap"])
        .env("SKEP_NODE", &server.url)
        .output()?;
    let operator = String::from_utf8(bootstrap.stdout)?.trim().to_owned();
    if operator.is_empty() {
        bail!("token bootstrap: {}", String::from_utf8_lossy(&bootstrap.stderr));
    }
    let channel = tonic::transport::Endpoint::from_shared(server.url.clone())?
        .connect()
        .await?;
    let began = Instant::now();
    let mut tokens = Vec::with_capacity(tenants);
    for tenant in 0..tenants {
        tokens.push(deploy(&channel, &operator, &format!("t{tenant}"), &wasm, bee, bees).await?);
        if tenant % 50 == 49 {
            eprintln!("{} tenants after {:.0} s", tenant + 1, began.elapsed().as_secs_f64());
        }
    }
    let deployed = began.elapsed();
    let after_deploying = server.rss_mb()?;
    server.stop()?;

    let began = Instant::now();
    let server = Server::skep(skep, &data)?;
    let start = began.elapsed();
    tokio::time::sleep(IDLE).await;
    let idle = server.rss_mb()?;
    let cpu = server.cpu()?;
    tokio::time::sleep(IDLE).await;
    let idle_cpu = (server.cpu()? - cpu).as_secs_f64() / IDLE.as_secs_f64();
    let mut gateway = load::connect(&server.url).await?;
    let mut first = Vec::new();
    let mut again = Vec::new();
    let calls = CALLS.min(tenants * bees);
    for at in 0..calls {
        // Spread evenly, and never one twice.
        let place = at * tenants * bees / calls;
        let (token, subject) = (&tokens[place / bees], format!("b{}", place % bees));
        for times in [&mut first, &mut again] {
            let call = v1::RequestCall {
                subject: subject.clone(),
                payload: b"{}".to_vec().into(),
                ..v1::RequestCall::default()
            };
            let began = Instant::now();
            gateway.request(with(token, call)?).await.context("a call")?;
            times.push(began.elapsed());
        }
    }
    first.sort_unstable();
    again.sort_unstable();
    let at = |times: &[Duration], part: usize| us(times[(times.len() - 1) * part / 100]);
    println!(
        "{tenants} tenants of {bees} Bees, {} modules, each other bytes",
        tenants * bees
    );
    println!(
        "  deployed in {:.0} s; RSS of the node then {after_deploying:.0} MB",
        deployed.as_secs_f64()
    );
    println!(
        "  started anew in {:.0} ms; RSS idle {idle:.0} MB, CPU idle {:.2} %",
        start.as_secs_f64() * 1e3,
        idle_cpu * 100.0
    );
    println!(
        "  first call of a Bee, {calls} of them: median {}, p99 {}, worst {}; the next call: median {}",
        at(&first, 50),
        at(&first, 99),
        at(&first, 100),
        at(&again, 50)
    );
    println!("  RSS after these calls {:.0} MB", server.rss_mb()?);
    Ok(())
}

/// Makes a tenant with its Bees. Answers a token for it.
async fn deploy(
    channel: &Channel,
    operator: &str,
    tenant: &str,
    wasm: &[u8],
    bee: &str,
    bees: usize,
) -> anyhow::Result<String> {
    let mut access = AccessClient::new(channel.clone());
    let name = tenant.to_owned();
    let call = v1::CreateTenantRequest {
        name,
        ..v1::CreateTenantRequest::default()
    };
    access.create_tenant(with(operator, call)?).await?;
    let call = v1::CreateTokenRequest {
        tenant: tenant.to_owned(),
        role: "deploy".to_owned(),
        ..v1::CreateTokenRequest::default()
    };
    let token = access.create_token(with(operator, call)?).await?.into_inner().text;
    let mut keeper = BeekeeperClient::new(channel.clone());
    for at in 0..bees {
        let bytes = another(wasm, &format!("{tenant}/{at}"));
        let header = v1::PushHeader {
            name: format!("m{at}"),
            size: bytes.len() as u64,
            ..v1::PushHeader::default()
        };
        let header = v1::PushModuleRequest {
            part: Some(Part::Header(header)),
        };
        let chunks: Vec<_> = bytes.chunks(256 << 10).map(<[u8]>::to_vec).collect();
        let chunks = chunks.into_iter().map(|chunk| v1::PushModuleRequest {
            part: Some(Part::Chunk(chunk.into())),
        });
        let parts = tokio_stream::iter(std::iter::once(header).chain(chunks));
        keeper
            .push_module(with(&token, parts)?)
            .await
            .with_context(|| format!("push m{at} of {tenant}"))?;
    }
    let call = v1::ApplySwarmRequest {
        manifest: manifest(bees, bee),
        ..v1::ApplySwarmRequest::default()
    };
    keeper
        .apply_swarm(with(&token, call)?)
        .await
        .with_context(|| format!("apply of {tenant}"))?;
    Ok(token)
}
