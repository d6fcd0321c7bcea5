//! The component anew, with the linked modules in the libraries' place.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;

use wasm_encoder::reencode::{Reencode, ReencodeComponent};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, Component, ComponentAliasSection, ComponentImportSection, ComponentSectionId,
    ComponentTypeRef, CoreTypeSection, ExportKind, InstanceSection, Module, ModuleArg, ModuleSection, RawSection,
};
use wasmparser::Instance;

use super::code::{Code, Nowhere};
use super::outline::{Core, Outline, Space, What};
use super::plan::Plan;
use super::{CODE, FROM, Left, MEMORY};

/// The outer component's core indices, as they are where items went or moved.
#[derive(Default)]
pub(super) struct Moved {
    pub(super) now: HashMap<Core, u32>,
    pub(super) next: [u32; 5],
}

impl Moved {
    pub(super) fn define(&mut self, was: Core) {
        let next = &mut self.next[was.0 as usize];
        self.now.insert(was, *next);
        *next += 1;
    }

    pub(super) fn add(&mut self, space: Space) -> u32 {
        let next = &mut self.next[space as usize];
        *next += 1;
        *next - 1
    }

    pub(super) fn of(&self, core: Core) -> Result<u32, Left> {
        self.now
            .get(&core)
            .copied()
            .ok_or("something in it is used before it is there")
    }
}

impl Reencode for Moved {
    type Error = Infallible;

    fn function_index(&mut self, func: u32) -> Result<u32, Nowhere> {
        self.of((Space::Func, func))
            .map_err(|_| Nowhere::CanonicalizedHeapTypeReference)
    }

    fn memory_index(&mut self, memory: u32) -> Result<u32, Nowhere> {
        self.of((Space::Memory, memory))
            .map_err(|_| Nowhere::CanonicalizedHeapTypeReference)
    }
}

impl ReencodeComponent for Moved {}

/// Their places among the core modules of the frame.
const CODE_MODULE: u32 = 0;
const MEMORY_MODULE: u32 = 1;

pub(super) fn emit(outline: &Outline<'_>, plan: &Plan, code: &Code, memory: &Module) -> Result<Vec<u8>, Left> {
    let mut out = Emitter {
        outline,
        plan,
        component: Component::new(),
        moved: Moved::default(),
        modules: HashMap::new(),
        code: 0,
        memory: 0,
    };
    let mut types = CoreTypeSection::new();
    types.ty().module(&code.face);
    let mut imports = ComponentImportSection::new();
    imports.import(CODE, ComponentTypeRef::Module(0));
    out.component
        .section(&types)
        .section(&imports)
        .section(&ModuleSection(memory));
    let linked: BTreeSet<usize> = plan.libs.iter().map(|lib| lib.module).collect();
    let mut next = MEMORY_MODULE + 1;
    for (module, lib) in outline.modules.iter().enumerate() {
        if !linked.contains(&module) {
            out.component.section(&RawSection {
                id: ComponentSectionId::CoreModule as u8,
                data: lib.bytes,
            });
            out.modules.insert(module, next);
            next += 1;
        }
    }
    for item in 0..=plan.place {
        if !plan.after.contains(&item) {
            out.item(item)?;
        }
    }
    out.instances()?;
    for item in 0..outline.items.len() {
        if item > plan.place || plan.after.contains(&item) {
            out.item(item)?;
        }
    }
    Ok(out.component.finish())
}

pub(super) struct Emitter<'p, 'a> {
    pub(super) outline: &'p Outline<'a>,
    pub(super) plan: &'p Plan,
    pub(super) component: Component,
    pub(super) moved: Moved,
    pub(super) modules: HashMap<usize, u32>,
    pub(super) memory: u32,
    pub(super) code: u32,
}

impl Emitter<'_, '_> {
    /// Instances of the two modules that take the place of the libraries.
    pub(super) fn instances(&mut self) -> Result<(), Left> {
        let mut section = InstanceSection::new();
        section.instantiate(MEMORY_MODULE, std::iter::empty::<(&str, ModuleArg)>());
        self.memory = self.moved.add(Space::Instance);
        self.component.section(&section);
        let mut aliases = ComponentAliasSection::new();
        aliases.alias(Alias::CoreInstanceExport {
            instance: self.memory,
            kind: ExportKind::Memory,
            name: MEMORY,
        });
        self.component.section(&aliases);
        let memory = self.moved.add(Space::Memory);
        let mut exports = vec![(MEMORY.to_owned(), ExportKind::Memory, memory)];
        for (n, (core, _)) in self.plan.taken.iter().enumerate() {
            exports.push((n.to_string(), ExportKind::Func, self.moved.of(*core)?));
        }
        let mut section = InstanceSection::new();
        section.export_items(exports.iter().map(|(name, kind, index)| (name.as_str(), *kind, *index)));
        let given = self.moved.add(Space::Instance);
        section.instantiate(CODE_MODULE, [(FROM, ModuleArg::Instance(given))]);
        self.code = self.moved.add(Space::Instance);
        self.component.section(&section);
        Ok(())
    }

    pub(super) fn item(&mut self, item: usize) -> Result<(), Left> {
        if self.plan.dropped.contains(&item) {
            return Ok(());
        }
        let is = &self.outline.items[item];
        match &is.what {
            What::Module => return Ok(()),
            What::Plain => {
                if is.section == ComponentSectionId::Component as u8 {
                    self.component.section(&RawSection {
                        id: is.section,
                        data: is.bytes,
                    });
                } else {
                    // A section of one.
                    let data = [&[1], is.bytes].concat();
                    self.component.section(&RawSection {
                        id: is.section,
                        data: &data,
                    });
                }
            }
            What::Instance(Instance::Instantiate { module_index, args }) => {
                let mut mapped = Vec::with_capacity(args.len());
                for arg in args {
                    mapped.push((
                        arg.name,
                        ModuleArg::Instance(self.moved.of((Space::Instance, arg.index))?),
                    ));
                }
                let module = self
                    .modules
                    .get(&(*module_index as usize))
                    .ok_or("a module in it is gone")?;
                let mut section = InstanceSection::new();
                section.instantiate(*module, mapped);
                self.component.section(&section);
            }
            What::Instance(Instance::FromExports(exports)) => {
                let mut mapped = Vec::with_capacity(exports.len());
                for export in exports {
                    let space = Space::of(export.kind)?;
                    mapped.push((export.name, space.kind(), self.moved.of((space, export.index))?));
                }
                let mut section = InstanceSection::new();
                section.export_items(mapped);
                self.component.section(&section);
            }
            What::Alias { kind, instance, name } => {
                let space = Space::of(*kind)?;
                let (instance, name) = match self.plan.given.get(&item) {
                    Some(_) if space == Space::Memory => (self.memory, MEMORY),
                    Some(given) => (self.code, given.as_str()),
                    None => (self.moved.of((Space::Instance, *instance))?, *name),
                };
                let mut section = ComponentAliasSection::new();
                section.alias(Alias::CoreInstanceExport {
                    instance,
                    kind: space.kind(),
                    name,
                });
                self.component.section(&section);
            }
            What::Canon(canon) => {
                let mut section = CanonicalFunctionSection::new();
                self.moved
                    .parse_component_canonical(&mut section, canon.clone())
                    .map_err(|_| "a function in it is used before it is there")?;
                self.component.section(&section);
            }
        }
        if let Some(core) = self.outline.defines[item] {
            self.moved.define(core);
        }
        Ok(())
    }
}
