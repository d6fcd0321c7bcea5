//! `certs dev`: a root of one's own and what it signed, to try TLS with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::json;

use super::args;
use super::failure::{Exit, Failure, Outcome};
use super::output::Printer;
use crate::settings;

/// What is made, and whether it is secret.
const FILES: [(&str, bool); 5] = [
    ("ca.pem", false),
    ("node.pem", false),
    ("node.key", true),
    ("client.pem", false),
    ("client.key", true),
];
const SECONDS_A_YEAR: u64 = 31_556_952;

pub fn run(args: args::Certs, out: Printer) -> Outcome {
    let args::CertsCommand::Dev { dir, hosts } = args.what;
    if let Some((there, _)) = FILES.iter().find(|(name, _)| dir.join(name).exists()) {
        return Err(Failure::new(
            Exit::Conflict,
            format!("{} is there already: nothing was written", dir.join(there).display()),
        )
        .remedy("name another folder, or remove what is in this one"));
    }
    make(&dir, &hosts)?;
    if out.json() {
        return out.document(&json!({ "dir": dir, "files": FILES.map(|(name, _)| name) }));
    }
    let shown = dir.display();
    out.line(&format!("made in {shown}: {}", FILES.map(|(name, _)| name).join(", ")))?;
    out.line("for trying only: whoever has these files is trusted by whoever trusts ca.pem. Two years, then again")?;
    out.line(&format!(
        "  skep serve --data ./data --tls-cert {shown}/node.pem --tls-key {shown}/node.key"
    ))?;
    out.line(&format!("  skep login https://localhost:4020 --ca {shown}/ca.pem"))
}

/// # Errors
/// A host that is none; files that cannot be written.
pub fn make(dir: &Path, hosts: &[String]) -> anyhow::Result<()> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    names.extend(Some(settings::machine()).filter(|name| !name.is_empty()));
    names.extend(hosts.iter().cloned());
    names.sort();
    names.dedup();
    // The root's key is not kept: nobody signs anything with it again.
    let root_key = KeyPair::generate()?;
    let mut root = params("skep development root", Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_pem = root.self_signed(&root_key)?.pem();
    let issuer = Issuer::new(root, root_key);
    let sign = |name: &str, names: Vec<String>, uses: Vec<ExtendedKeyUsagePurpose>| -> anyhow::Result<_> {
        let key = KeyPair::generate()?;
        let mut params = params(name, names)?;
        params.extended_key_usages = uses;
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &issuer)?;
        Ok((signed.pem(), key.serialize_pem()))
    };
    let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    // A node is also a client of the others.
    let (node, node_key) = sign("skep node", names, vec![server, client.clone()])?;
    let (user, user_key) = sign("skep client", Vec::new(), vec![client])?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))?;
    for ((name, secret), text) in FILES.iter().zip([root_pem, node, node_key, user, user_key]) {
        let path = dir.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if *secret { 0o600 } else { 0o644 })
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn params(name: &str, names: Vec<String>) -> anyhow::Result<CertificateParams> {
    if let Some(bad) = names.iter().find(|name| name.is_empty() || !name.is_ascii()) {
        bail!("`{}` is no host's name", bad.escape_debug());
    }
    let mut params = CertificateParams::new(names).context("the names of hosts")?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let year = i32::try_from(1970 + now.as_secs() / SECONDS_A_YEAR).unwrap_or(i32::MAX);
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + 3, 1, 1);
    Ok(params)
}
