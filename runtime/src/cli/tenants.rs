//! `tenant` and `usage`.

use serde_json::{Map, Value, json};
use skep_model::env::{Clock as _, SystemClock};
use skep_model::quota::Quota;
use skep_proto::v1;

use super::args::{self, TenantCommand};
use super::connect;
use super::failure::Outcome;
use super::output::{Printer, size, time};
use crate::isolation::Isolation;
use crate::wording::count;

pub async fn tenant(args: args::Tenant, node: &str, out: Printer) -> Outcome {
    let mut access = connect::access(node).await?;
    match args.what {
        TenantCommand::Create {
            name,
            limits,
            isolation,
            nodes,
        } => {
            // Where there is none yet, `none` says nothing.
            let (limits, _) = told(&limits);
            let isolation = Isolation::from(isolation).to_string();
            let request = v1::CreateTenantRequest {
                name,
                limits,
                isolation,
                nodes: nodes.map(label).unwrap_or_default(),
            };
            let made = access.create_tenant(request).await?.into_inner();
            if out.json() {
                return out.document(&as_json(&made));
            }
            let name = made.name;
            out.line(&format!(
                "tenant {name} is there; give somebody a token: skep token create --tenant {name} --role admin"
            ))
        }
        TenantCommand::Set {
            name,
            limits,
            isolation,
            signer,
            no_signer,
            nodes,
        } => {
            let (limits, unlimited) = told(&limits);
            let request = v1::SetTenantRequest {
                name,
                limits,
                unlimited,
                add_signers: signer,
                remove_signers: no_signer,
                nodes: nodes.map(label),
                isolation: isolation.map_or_else(String::new, |isolation| Isolation::from(isolation).to_string()),
            };
            let set = access.set_tenant(request).await?.into_inner();
            if out.json() {
                return out.document(&as_json(&set));
            }
            limits_table(&set, out)?;
            isolation_of(&set, out)?;
            signers(&set, out)?;
            pinned(&set, out)
        }
        TenantCommand::List => {
            let request = v1::ListTenantsRequest { name: String::new() };
            tenants(access.list_tenants(request).await?.into_inner().tenants, out)
        }
        TenantCommand::Show { name } => {
            let request = v1::ListTenantsRequest { name };
            let all = access.list_tenants(request).await?.into_inner().tenants;
            let one = all.first().cloned().unwrap_or_default();
            tenants(all, out)?;
            if out.json() {
                return Ok(());
            }
            out.line("")?;
            limits_table(&one, out)?;
            isolation_of(&one, out)?;
            signers(&one, out)?;
            pinned(&one, out)
        }
        TenantCommand::Delete { name, purge } => {
            let gone = access
                .delete_tenant(v1::DeleteTenantRequest { name, purge })
                .await?
                .into_inner();
            if out.json() {
                return out.document(&as_json(&gone));
            }
            out.line(&format!(
                "tenant {} is gone, with {}, {}, {} and {}",
                gone.name,
                count(gone.swarms, "Swarm"),
                count(gone.modules, "module"),
                count(gone.models, "model"),
                count(gone.tokens, "token"),
            ))
        }
    }
}

/// What is to be limited, and what no more.
fn told(given: &args::Limits) -> (Vec<v1::Limit>, Vec<String>) {
    let (mut limits, mut unlimited) = (Vec::new(), Vec::new());
    for (quota, value) in given.given() {
        match value {
            Some(value) => limits.push(v1::Limit {
                name: quota.to_string(),
                value,
            }),
            None => unlimited.push(quota.to_string()),
        }
    }
    (limits, unlimited)
}

/// `any` is how people say that there is none.
fn label(text: String) -> String {
    if text == "any" { String::new() } else { text }
}

fn pinned(tenant: &v1::Tenant, out: Printer) -> Outcome {
    if tenant.nodes.is_empty() {
        return Ok(());
    }
    out.line(&format!(
        "\nruns on nodes labelled {}, which run nobody else; `skep nodes` shows which they are",
        tenant.nodes
    ))
}

/// Where its Bees run. Older nodes do not say.
fn isolation_of(tenant: &v1::Tenant, out: Printer) -> Outcome {
    if tenant.isolation != Isolation::Process.as_str() {
        return Ok(());
    }
    out.line(&match tenant.process_id {
        0 => "\nisolation process: its Bees run in a process of their own, which is not there now".to_owned(),
        id => format!("\nisolation process: its Bees run in a process of their own, {id} on the node that answered"),
    })
}

fn signers(tenant: &v1::Tenant, out: Printer) -> Outcome {
    if tenant.signers.is_empty() {
        return Ok(());
    }
    out.line("\ntakes modules that one of these signed:")?;
    tenant.signers.iter().try_for_each(|key| out.line(&format!("  {key}")))
}

fn limits_table(tenant: &v1::Tenant, out: Printer) -> Outcome {
    let find = |all: &[v1::Limit], quota: Quota| {
        let found = all.iter().find(|limit| limit.name == quota.as_str());
        found.map(|limit| quota.show(limit.value))
    };
    let rows = Quota::ALL.into_iter().map(|quota| {
        vec![
            quota.to_string(),
            find(&tenant.limits, quota).unwrap_or_else(|| "-".to_owned()),
            find(&tenant.used, quota).unwrap_or_default(),
        ]
    });
    out.table_of_lines(&["LIMIT", "AT MOST", "HAS"], rows.collect())
}

fn tenants(all: Vec<v1::Tenant>, out: Printer) -> Outcome {
    if out.json() {
        return out.document(&json!({ "tenants": all.iter().map(as_json).collect::<Vec<_>>() }));
    }
    let rows = all.iter().map(|t| {
        vec![
            t.name.clone(),
            if t.deleting { "deleting" } else { "active" }.to_owned(),
            if t.isolation.is_empty() {
                Isolation::Shared.as_str()
            } else {
                &t.isolation
            }
            .to_owned(),
            t.swarms.to_string(),
            t.modules.to_string(),
            t.models.to_string(),
            t.tokens.to_string(),
            if t.created_ms == 0 {
                String::new()
            } else {
                time(t.created_ms)
            },
        ]
    });
    out.table_of_lines(
        &[
            "TENANT",
            "STATE",
            "ISOLATION",
            "SWARMS",
            "MODULES",
            "MODELS",
            "TOKENS",
            "CREATED",
        ],
        rows.collect(),
    )
}

fn as_json(tenant: &v1::Tenant) -> Value {
    let amounts = |all: &[v1::Limit]| -> Map<String, Value> {
        all.iter()
            .map(|limit| (limit.name.clone(), limit.value.into()))
            .collect()
    };
    json!({
        "name": tenant.name, "created_ms": tenant.created_ms, "deleting": tenant.deleting, "swarms": tenant.swarms,
        "modules": tenant.modules, "models": tenant.models, "tokens": tenant.tokens, "nodes": tenant.nodes,
        "limits": amounts(&tenant.limits), "used": amounts(&tenant.used),
        "isolation": tenant.isolation, "process_id": (tenant.process_id != 0).then_some(tenant.process_id),
    })
}

pub async fn usage(args: args::Usage, node: &str, out: Printer) -> Outcome {
    let back = args
        .since
        .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let request = v1::UsageRequest {
        tenant: args.tenant.unwrap_or_default(),
        since_ms: back.map_or(0, |ms| SystemClock.now_ms().saturating_sub(ms)),
    };
    let used = connect::access(node).await?.usage(request).await?.into_inner().used;
    if out.json() {
        let all: Vec<Value> = used.iter().map(used_json).collect();
        return out.document(&json!({ "used": all }));
    }
    let rows = used.iter().map(|used| {
        vec![
            used.tenant.clone(),
            if used.bee.is_empty() { "(all)" } else { &used.bee }.to_owned(),
            format!("{}.{:03}s", used.cpu_us / 1_000_000, used.cpu_us / 1_000 % 1_000),
            format!("{}·s", size(used.memory_byte_ms / 1_000)),
            used.messages.to_string(),
            size(used.bytes_in),
            size(used.bytes_out),
        ]
    });
    out.table_of_lines(
        &["TENANT", "BEE", "CPU", "MEMORY", "MESSAGES", "IN", "OUT"],
        rows.collect(),
    )
}

fn used_json(used: &v1::Used) -> Value {
    json!({
        "tenant": used.tenant, "bee": (!used.bee.is_empty()).then_some(&used.bee), "cpu_us": used.cpu_us,
        "memory_byte_ms": used.memory_byte_ms, "messages": used.messages, "bytes_in": used.bytes_in, "bytes_out": used.bytes_out,
    })
}
