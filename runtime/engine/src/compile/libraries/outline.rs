//! What a component is made of, as far as it is needed to link its libraries.

use std::collections::HashMap;

use wasm_encoder::{ComponentSectionId, ExportKind};
use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind,
    ComponentTypeRef, ConstExpr, Data, DataKind, Element, ExternalKind, FuncType, FunctionBody, Global, Instance,
    Operator, Parser, Payload, TableType, TypeRef,
};

use super::{LIBRARY, Left};

/// One definition of the outer component.
pub(super) struct Item<'a> {
    pub(super) section: u8,
    pub(super) bytes: &'a [u8],
    pub(super) what: What<'a>,
}

pub(super) enum What<'a> {
    /// Of the component level, or nothing that concerns core definitions.
    Plain,
    Module,
    Instance(Instance<'a>),
    Alias {
        kind: ExternalKind,
        instance: u32,
        name: &'a str,
    },
    Canon(CanonicalFunction),
}

/// A core definition by kind and index; or an instance.
pub(super) type Core = (Space, u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Space {
    Func,
    Table,
    Memory,
    Global,
    Instance,
}

impl Space {
    pub(super) fn of(kind: ExternalKind) -> Result<Self, Left> {
        Ok(match kind {
            ExternalKind::Func => Self::Func,
            ExternalKind::Table => Self::Table,
            ExternalKind::Memory => Self::Memory,
            ExternalKind::Global => Self::Global,
            _ => return Err("it passes tags or exact functions"),
        })
    }

    pub(super) fn kind(self) -> ExportKind {
        match self {
            Self::Func => ExportKind::Func,
            Self::Table => ExportKind::Table,
            Self::Memory => ExportKind::Memory,
            Self::Global | Self::Instance => ExportKind::Global,
        }
    }
}

/// What the outer component is made of.
pub(super) struct Outline<'a> {
    pub(super) items: Vec<Item<'a>>,
    /// Which item defines a core definition.
    pub(super) by: [Vec<usize>; 5],
    /// And which one it defines.
    pub(super) defines: Vec<Option<Core>>,
    pub(super) modules: Vec<Lib<'a>>,
}

/// A core module, as far as it is needed to link it.
#[derive(Default)]
pub(super) struct Lib<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) library: bool,
    pub(super) types: Vec<FuncType>,
    pub(super) imports: Vec<wasmparser::Import<'a>>,
    pub(super) funcs: Vec<u32>,
    pub(super) tables: Vec<TableType>,
    pub(super) memories: Vec<wasmparser::MemoryType>,
    pub(super) globals: Vec<Global<'a>>,
    pub(super) exports: HashMap<&'a str, (ExternalKind, u32)>,
    pub(super) elements: Vec<Element<'a>>,
    pub(super) data: &'a [u8],
    pub(super) data_at_constants: bool,
    pub(super) bodies: Vec<FunctionBody<'a>>,
    /// Why it cannot be linked, if so.
    pub(super) odd: Option<Left>,
}

pub(super) fn broken<T>(read: Result<T, wasmparser::BinaryReaderError>) -> Result<T, Left> {
    read.map_err(|_| "it cannot be read")
}

impl<'a> Outline<'a> {
    pub(super) fn read(component: &'a [u8]) -> Result<Self, Left> {
        let mut outline = Self {
            items: Vec::new(),
            by: Default::default(),
            defines: Vec::new(),
            modules: Vec::new(),
        };
        // 1 in the outer component; deeper ones are not looked into, but for what they take from it.
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            let payload = broken(payload)?;
            match &payload {
                Payload::Version { .. } => {
                    depth += 1;
                    continue;
                }
                Payload::End(_) => {
                    depth -= 1;
                    continue;
                }
                Payload::ComponentAliasSection(section) if depth > 1 => {
                    for alias in section.clone() {
                        if matches!(broken(alias)?, ComponentAlias::Outer { .. }) {
                            return Err("a component in it reaches out of itself");
                        }
                    }
                }
                _ => {}
            }
            if depth == 1 {
                outline.section(component, payload)?;
            }
        }
        // Nothing is used before it is there, so whoever follows what items need comes to an end.
        for item in 0..outline.items.len() {
            for core in outline.needs(item)? {
                if outline.item(core)? >= item {
                    return Err("something in it is used before it is there");
                }
            }
        }
        Ok(outline)
    }

    pub(super) fn section(&mut self, component: &'a [u8], payload: Payload<'a>) -> Result<(), Left> {
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => {
                let bytes = component.get(unchecked_range).ok_or("it is cut off")?;
                self.modules.push(Lib::read(bytes)?);
                self.add(ComponentSectionId::CoreModule, bytes, What::Module, None);
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                let bytes = component.get(unchecked_range).ok_or("it is cut off")?;
                self.add(ComponentSectionId::Component, bytes, What::Plain, None);
            }
            Payload::InstanceSection(section) => {
                for (bytes, instance) in each(component, section)? {
                    self.add(
                        ComponentSectionId::CoreInstance,
                        bytes,
                        What::Instance(instance),
                        Some(Space::Instance),
                    );
                }
            }
            Payload::ComponentAliasSection(section) => {
                for (bytes, alias) in each(component, section)? {
                    match alias {
                        ComponentAlias::CoreInstanceExport {
                            kind,
                            instance_index,
                            name,
                        } => {
                            let what = What::Alias {
                                kind,
                                instance: instance_index,
                                name,
                            };
                            self.add(ComponentSectionId::Alias, bytes, what, Some(Space::of(kind)?));
                        }
                        ComponentAlias::InstanceExport {
                            kind: ComponentExternalKind::Module,
                            ..
                        }
                        | ComponentAlias::Outer {
                            kind: ComponentOuterAliasKind::CoreModule,
                            ..
                        } => {
                            return Err("it takes core modules from elsewhere");
                        }
                        _ => self.add(ComponentSectionId::Alias, bytes, What::Plain, None),
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for (bytes, canon) in each(component, section)? {
                    let space = match canon {
                        CanonicalFunction::Lift { .. } => None,
                        CanonicalFunction::Lower { .. }
                        | CanonicalFunction::ResourceNew { .. }
                        | CanonicalFunction::ResourceDrop { .. }
                        | CanonicalFunction::ResourceRep { .. } => Some(Space::Func),
                        _ => return Err("it uses built-in functions that are not known here"),
                    };
                    self.add(ComponentSectionId::CanonicalFunction, bytes, What::Canon(canon), space);
                }
            }
            Payload::ComponentImportSection(section) => {
                for (bytes, import) in each(component, section)? {
                    if matches!(import.ty, ComponentTypeRef::Module(_)) {
                        return Err("it takes core modules from elsewhere");
                    }
                    self.add(ComponentSectionId::Import, bytes, What::Plain, None);
                }
            }
            Payload::ComponentTypeSection(section) => {
                for (bytes, _) in each(component, section)? {
                    self.add(ComponentSectionId::Type, bytes, What::Plain, None);
                }
            }
            // The frame begins with one of its own.
            Payload::CoreTypeSection(_) => return Err("it names core types"),
            Payload::ComponentInstanceSection(section) => {
                for (bytes, _) in each(component, section)? {
                    self.add(ComponentSectionId::Instance, bytes, What::Plain, None);
                }
            }
            Payload::ComponentExportSection(section) => {
                for (bytes, _) in each(component, section)? {
                    self.add(ComponentSectionId::Export, bytes, What::Plain, None);
                }
            }
            // Names for people. They would name other things now.
            Payload::CustomSection(_) => {}
            _ => return Err("it has a section that is not known here"),
        }
        Ok(())
    }

    pub(super) fn add(&mut self, section: ComponentSectionId, bytes: &'a [u8], what: What<'a>, space: Option<Space>) {
        let item = self.items.len();
        self.defines.push(space.map(|space| {
            let by = &mut self.by[space as usize];
            by.push(item);
            (space, u32::try_from(by.len() - 1).unwrap_or(u32::MAX))
        }));
        self.items.push(Item {
            section: section as u8,
            bytes,
            what,
        });
    }

    /// The item that defines this.
    pub(super) fn item(&self, (space, index): Core) -> Result<usize, Left> {
        self.by[space as usize]
            .get(index as usize)
            .copied()
            .ok_or("an index in it leads nowhere")
    }

    /// What an item refers to among core definitions.
    pub(super) fn needs(&self, item: usize) -> Result<Vec<Core>, Left> {
        let mut needs = Vec::new();
        match &self.items[item].what {
            What::Plain | What::Module => {}
            What::Instance(Instance::Instantiate { args, .. }) => {
                needs.extend(args.iter().map(|arg| (Space::Instance, arg.index)))
            }
            What::Instance(Instance::FromExports(exports)) => {
                for export in exports {
                    needs.push((Space::of(export.kind)?, export.index));
                }
            }
            What::Alias { instance, .. } => needs.push((Space::Instance, *instance)),
            What::Canon(CanonicalFunction::Lift {
                core_func_index,
                options,
                ..
            }) => {
                needs.push((Space::Func, *core_func_index));
                needs.extend(of_options(options)?);
            }
            What::Canon(CanonicalFunction::Lower { options, .. }) => needs.extend(of_options(options)?),
            What::Canon(_) => {}
        }
        Ok(needs)
    }

    pub(super) fn module_of(&self, item: usize) -> Option<usize> {
        match &self.items[item].what {
            What::Instance(Instance::Instantiate { module_index, .. }) => Some(*module_index as usize),
            _ => None,
        }
    }
}

pub(super) fn of_options(options: &[CanonicalOption]) -> Result<Vec<Core>, Left> {
    let mut needs = Vec::new();
    for option in options {
        match option {
            CanonicalOption::Memory(memory) => needs.push((Space::Memory, *memory)),
            CanonicalOption::Realloc(f) | CanonicalOption::PostReturn(f) => needs.push((Space::Func, *f)),
            CanonicalOption::UTF8 | CanonicalOption::UTF16 | CanonicalOption::CompactUTF16 => {}
            _ => return Err("it uses options of functions that are not known here"),
        }
    }
    Ok(needs)
}

/// The parts of a section, each with its bytes.
pub(super) fn each<'a, T: wasmparser::FromReader<'a>>(
    component: &'a [u8],
    section: wasmparser::SectionLimited<'a, T>,
) -> Result<Vec<(&'a [u8], T)>, Left> {
    let end = section.range().end;
    let all: Vec<_> = broken(section.into_iter_with_offsets().collect::<Result<_, _>>())?;
    let starts: Vec<usize> = all.iter().map(|(at, _)| *at).chain([end]).collect();
    Ok(all
        .into_iter()
        .enumerate()
        .map(|(n, (at, part))| (&component[at..starts[n + 1]], part))
        .collect())
}

impl<'a> Lib<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Left> {
        let mut lib = Self {
            bytes,
            data_at_constants: true,
            ..Self::default()
        };
        for payload in Parser::new(0).parse_all(bytes) {
            match broken(payload)? {
                Payload::TypeSection(section) => {
                    for group in section {
                        let group = broken(group)?;
                        let mut types = group.into_types();
                        match (types.next(), types.next()) {
                            (Some(only), None)
                                if only.is_final && only.supertype_idx.is_none() && !only.composite_type.shared =>
                            {
                                match only.composite_type.inner {
                                    wasmparser::CompositeInnerType::Func(func) => lib.types.push(func),
                                    _ => lib.odd = Some("types other than functions"),
                                }
                            }
                            _ => lib.odd = Some("types that refer to one another"),
                        }
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        lib.imports.push(broken(import)?);
                    }
                }
                Payload::FunctionSection(section) => lib.funcs = broken(section.into_iter().collect())?,
                Payload::TableSection(section) => {
                    for table in section {
                        let table = broken(table)?;
                        if matches!(table.init, wasmparser::TableInit::Expr(_)) {
                            lib.odd = Some("tables that begin filled");
                        }
                        lib.tables.push(table.ty);
                    }
                }
                Payload::MemorySection(section) => lib.memories = broken(section.into_iter().collect())?,
                Payload::GlobalSection(section) => lib.globals = broken(section.into_iter().collect())?,
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = broken(export)?;
                        lib.exports.insert(export.name, (export.kind, export.index));
                    }
                }
                Payload::ElementSection(section) => lib.elements = broken(section.into_iter().collect())?,
                Payload::DataSection(section) => {
                    lib.data = &bytes[section.range()];
                    for data in section {
                        lib.data_at_constants &= at_constant(&broken(data)?);
                    }
                }
                Payload::CodeSectionEntry(body) => lib.bodies.push(body),
                Payload::StartSection { .. } => lib.odd = Some("a start function"),
                Payload::TagSection(_) => lib.odd = Some("exceptions"),
                Payload::CustomSection(custom) => lib.library |= custom.name() == LIBRARY,
                _ => {}
            }
        }
        Ok(lib)
    }

    /// How many of a kind are imported: they come first in its index space.
    pub(super) fn imported(&self, space: Space) -> usize {
        self.imports.iter().filter(|i| space_of(&i.ty) == Some(space)).count()
    }
}

pub(super) fn space_of(ty: &TypeRef) -> Option<Space> {
    match ty {
        TypeRef::Func(_) => Some(Space::Func),
        TypeRef::Table(_) => Some(Space::Table),
        TypeRef::Memory(_) => Some(Space::Memory),
        TypeRef::Global(_) => Some(Space::Global),
        _ => None,
    }
}

/// Segments of the one memory at places that are known.
pub(super) fn at_constant(data: &Data<'_>) -> bool {
    match &data.kind {
        DataKind::Active {
            memory_index: 0,
            offset_expr,
        } => constant(offset_expr).is_some(),
        _ => false,
    }
}

/// The value of `i32.const n`.
pub(super) fn constant(expr: &ConstExpr<'_>) -> Option<i32> {
    let mut ops = expr.get_operators_reader();
    match (ops.read(), ops.read(), ops.eof()) {
        (Ok(Operator::I32Const { value }), Ok(Operator::End), true) => Some(value),
        _ => None,
    }
}
