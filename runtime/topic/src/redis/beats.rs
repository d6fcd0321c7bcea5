//! Who is there. Not gated: a beat that is lost is made up for by the next.

use bytes::Bytes;
use redis::Value;
use skep_model::id::NodeId;
use skep_model::limits;

use super::reply::{bytes, list, number};
use super::scripts::Script;
use super::{Core, names};
use crate::beats::{fits, too_many};
use crate::{Beat, Error, Pulse};

pub(super) async fn beat(core: &Core, node: NodeId, record: &Bytes, ttl_ms: u64) -> Result<Pulse, Error> {
    fits(record)?;
    let mut args = core.args(Script::Beat, names::CATALOG);
    args.bytes(&node.0).num(ttl_ms).num(limits::NODES_MAX).bytes(record);
    let (mut said, _) = core.write(Script::Beat, &args).await?;
    match said.word.as_str() {
        "OK" => {}
        "MANY" => return Err(too_many()),
        _ => return Err(said.refusal()),
    }
    let (now_ms, catalog) = (said.number()?, said.number()?);
    let mut nodes = Vec::new();
    for row in said.list()? {
        let mut row = list(row)?.into_iter();
        let mut next = || row.next().unwrap_or(Value::Nil);
        let node = bytes(next())?;
        let node = NodeId::from_slice(&node).ok_or_else(|| Error::Corrupt("a node's id has not 8 bytes".to_owned()))?;
        nodes.push(Beat {
            node,
            left_ms: number(next())?,
            record: bytes(next())?,
        });
    }
    nodes.sort_by_key(|beat| beat.node);
    Ok(Pulse { nodes, catalog, now_ms })
}

pub(super) async fn leave(core: &Core, node: NodeId) -> Result<(), Error> {
    let mut args = core.args(Script::Leave, names::CATALOG);
    args.bytes(&node.0);
    core.write(Script::Leave, &args).await?;
    Ok(())
}
