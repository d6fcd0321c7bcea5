//! The pre-check: counts what an upload holds, over all nested modules and components, before anything is validated or
//! compiled. Counting is linear in the upload's size and does not recurse, so it cannot itself be attacked.

use wasmparser::{
    BinaryReaderError, ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, Encoding,
    FunctionBody, Operator, Parser, Payload,
};

use super::refusal::{Code, CompileError};
use crate::host::{HANDLER, OFFERED};
use crate::settings::{CompilerLimits, TABLE_ELEMENTS_MAX};

const MAGIC: &[u8; 4] = b"\0asm";
const CORE: [u8; 4] = [1, 0, 0, 0];
const COMPONENT: [u8; 4] = [0x0d, 0, 1, 0];
const PAGE_BYTES: u64 = 64 << 10;
/// How an upload is made, for those who uploaded something else.
const BUILD: &str = "build a component, e.g. with `cargo build --release --target wasm32-wasip2`";

pub(super) fn size(len: u64, limits: &CompilerLimits) -> Result<(), CompileError> {
    if len <= limits.upload_bytes {
        return Ok(());
    }
    Err(CompileError::new(
        Code::TooLarge,
        format!(
            "the module has {len} bytes, the limit is {}; strip it, or split it into smaller modules",
            limits.upload_bytes
        ),
    ))
}

/// The first eight bytes tell what it is.
pub(super) fn preamble(upload: &[u8]) -> Result<(), CompileError> {
    let text = upload.trim_ascii_start();
    if text.starts_with(b"(") || text.starts_with(b";;") {
        return Err(CompileError::new(
            Code::TextForm,
            format!("this is WebAssembly text; only the binary form is taken: {BUILD}"),
        ));
    }
    let head = &upload[..upload.len().min(MAGIC.len())];
    if head.is_empty() || !MAGIC.starts_with(head) {
        return Err(CompileError::new(
            Code::NotWasm,
            format!("this is not WebAssembly: {BUILD}"),
        ));
    }
    match upload.get(4..8) {
        None => Err(truncated("it ends within its first eight bytes")),
        Some(version) if version == CORE => Err(CompileError::new(
            Code::CoreModule,
            format!("this is a core module, not a component: {BUILD}"),
        )),
        Some(version) if version == COMPONENT => Ok(()),
        Some(version) => Err(CompileError::new(
            Code::Invalid,
            format!("this is WebAssembly of an unknown version ({version:02x?}): {BUILD}"),
        )),
    }
}

fn truncated(how: &str) -> CompileError {
    CompileError::new(
        Code::Truncated,
        format!("the module is cut off: {how}; upload it again"),
    )
}

/// One component that is being read, with its nested ones.
#[derive(Default)]
struct Frame {
    /// What instantiating each component of its index space would add, itself included. None: not known.
    components: Vec<Option<u64>>,
    /// Instances that this component makes, nested ones expanded.
    instances: u64,
}

enum Open {
    Component(Frame),
    Module,
}

#[derive(Default)]
struct Counts {
    functions: u64,
    modules: u64,
    components: u64,
    data_segments: u64,
    memory_bytes: u64,
    table_elements: u64,
    has_handler: bool,
}

pub(super) fn inspect(upload: &[u8], limits: &CompilerLimits) -> Result<(), CompileError> {
    size(upload.len() as u64, limits)?;
    preamble(upload)?;
    let mut counts = Counts::default();
    let mut open: Vec<Open> = Vec::new();
    for payload in Parser::new(0).parse_all(upload) {
        payload_seen(payload?, &mut open, &mut counts, limits)?;
    }
    if !counts.has_handler {
        return Err(CompileError::new(
            Code::NoExport,
            format!("the component does not export `{HANDLER}`; register at least one Bee and build with the SDK"),
        ));
    }
    Ok(())
}

fn payload_seen(
    payload: Payload<'_>,
    open: &mut Vec<Open>,
    counts: &mut Counts,
    limits: &CompilerLimits,
) -> Result<(), CompileError> {
    // The outermost component is the one that talks to us.
    let outermost = open.len() == 1;
    match payload {
        Payload::Version { encoding, .. } => match encoding {
            Encoding::Component => {
                counts.components += 1;
                bound("the number of nested components", counts.components, limits.components)?;
                open.push(Open::Component(Frame::default()));
            }
            Encoding::Module => {
                counts.modules += 1;
                bound("the number of core modules", counts.modules, limits.modules)?;
                open.push(Open::Module);
            }
        },
        Payload::End(_) => {
            if let Some(Open::Component(done)) = open.pop()
                && let Some(Open::Component(outer)) = open.last_mut()
            {
                outer.components.push(Some(done.instances));
            }
        }
        Payload::FunctionSection(section) => {
            counts.functions += u64::from(section.count());
            bound("the number of functions", counts.functions, limits.functions)?;
        }
        Payload::CodeSectionEntry(body) => function(&body, limits)?,
        Payload::DataSection(section) => {
            counts.data_segments += u64::from(section.count());
            bound(
                "the number of data segments",
                counts.data_segments,
                limits.data_segments,
            )?;
        }
        Payload::MemorySection(section) => {
            for memory in section {
                let memory = memory?;
                let page = memory
                    .page_size_log2
                    .map_or(PAGE_BYTES, |log| 1u64.checked_shl(log).unwrap_or(u64::MAX));
                counts.memory_bytes = counts.memory_bytes.saturating_add(memory.initial.saturating_mul(page));
            }
            bound(
                "the initial memory (bytes)",
                counts.memory_bytes,
                limits.memory_image_bytes,
            )?;
        }
        Payload::TableSection(section) => {
            for table in section {
                let initial = table?.ty.initial;
                bound("the size of one table (elements)", initial, TABLE_ELEMENTS_MAX)?;
                counts.table_elements = counts.table_elements.saturating_add(initial);
            }
            bound(
                "the size of all tables (elements)",
                counts.table_elements,
                limits.table_elements,
            )?;
        }
        Payload::InstanceSection(section) => instantiated(open, u64::from(section.count()), limits)?,
        Payload::ComponentInstanceSection(section) => {
            for instance in section {
                let cost = match instance? {
                    ComponentInstance::FromExports(_) => 1,
                    ComponentInstance::Instantiate { component_index, .. } => {
                        let nested = component(open, 0, component_index).ok_or_else(|| {
                            CompileError::new(
                                Code::TooComplex,
                                "the module is too complex: it instantiates a component that it got by import or from an instance; \
                                 nest the component instead",
                            )
                        })?;
                        nested.saturating_add(1)
                    }
                };
                instantiated(open, cost, limits)?;
            }
        }
        Payload::ComponentAliasSection(section) => {
            for alias in section {
                let known = match alias? {
                    ComponentAlias::InstanceExport {
                        kind: ComponentExternalKind::Component,
                        ..
                    } => None,
                    ComponentAlias::Outer {
                        kind: ComponentOuterAliasKind::Component,
                        count,
                        index,
                    } => component(open, count, index),
                    _ => continue,
                };
                define(open, known);
            }
        }
        Payload::ComponentImportSection(section) => {
            for import in section {
                let import = import?;
                if outermost {
                    offered(import.name.name)?;
                }
                if import.ty.kind() == ComponentExternalKind::Component {
                    define(open, None);
                }
            }
        }
        Payload::ComponentExportSection(section) => {
            for export in section {
                let export = export?;
                if outermost && export.name.name == HANDLER && export.kind == ComponentExternalKind::Instance {
                    counts.has_handler = true;
                }
                // An export is a new name in the index space, for the same thing.
                if export.kind == ComponentExternalKind::Component {
                    let known = component(open, 0, export.index);
                    define(open, known);
                }
            }
        }
        Payload::UnknownSection { id, .. } => {
            return Err(CompileError::new(
                Code::Invalid,
                format!("the module is not valid: section {id} is unknown; {BUILD}"),
            ));
        }
        _ => {}
    }
    Ok(())
}

/// What it costs to instantiate component `index` of the component that is `outward` out of the one being read.
fn component(open: &[Open], outward: u32, index: u32) -> Option<u64> {
    let frame = open
        .iter()
        .rev()
        .filter_map(|o| match o {
            Open::Component(frame) => Some(frame),
            Open::Module => None,
        })
        .nth(outward as usize)?;
    frame.components.get(index as usize).copied().flatten()
}

fn define(open: &mut [Open], known: Option<u64>) {
    if let Some(Open::Component(frame)) = open.last_mut() {
        frame.components.push(known);
    }
}

fn instantiated(open: &mut [Open], cost: u64, limits: &CompilerLimits) -> Result<(), CompileError> {
    if let Some(Open::Component(frame)) = open.last_mut() {
        frame.instances = frame.instances.saturating_add(cost);
        bound(
            "the number of instances, nested components expanded,",
            frame.instances,
            limits.instances,
        )?;
    }
    Ok(())
}

fn function(body: &FunctionBody<'_>, limits: &CompilerLimits) -> Result<(), CompileError> {
    let range = body.range();
    bound(
        "the size of one function (bytes)",
        (range.end - range.start) as u64,
        limits.body_bytes,
    )?;
    let mut locals = 0u64;
    for group in body.get_locals_reader()? {
        locals = locals.saturating_add(u64::from(group?.0));
    }
    bound("the number of locals of one function", locals, limits.locals)?;
    let mut depth = 0u64;
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                depth += 1;
                bound("the nesting of one function", depth, limits.nesting)?;
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

fn bound(what: &str, found: u64, limit: u64) -> Result<(), CompileError> {
    if found <= limit {
        return Ok(());
    }
    Err(CompileError::too_complex(
        what,
        found,
        limit,
        "split the module, or build it with optimisation for size",
    ))
}

fn offered(import: &str) -> Result<(), CompileError> {
    let fits = || {
        let (interface, version) = import.split_once('@')?;
        let (package, name) = interface.rsplit_once('/')?;
        let (_, names, versions) = OFFERED.iter().find(|(p, ..)| *p == package)?;
        (names.contains(&name) && versions.fit(version)).then_some(())
    };
    fits().ok_or_else(|| {
        CompileError::new(
            Code::ImportNotOffered,
            format!(
                "the component imports `{import}`, which is not offered to Bees; remove what needs it (offered: skep:bee@0.1.0, \
                 wasi:nn@0.2.0-rc-2024-10-28, wasi:config/store@0.2.0-rc.1, wasi:logging@0.1.0-draft, and WASI 0.2 without incoming http)"
            ),
        )
    })
}

/// What the parser itself finds wrong.
impl From<BinaryReaderError> for CompileError {
    fn from(error: BinaryReaderError) -> Self {
        let text = error.to_string();
        if text.contains("unexpected end") {
            return truncated(&text);
        }
        Self::new(Code::Invalid, format!("the module is not valid: {text}"))
    }
}
