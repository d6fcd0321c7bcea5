//! The two modules that take the place of the libraries.

use std::collections::HashMap;
use std::convert::Infallible;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{
    CodeSection, ElementSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, GlobalSection,
    ImportSection, MemorySection, MemoryType, Module, ModuleType, RawSection, TableSection, TypeSection,
};
use wasmparser::{ConstExpr, FuncType, Operator};

use super::outline::{Core, Lib, Outline, Space, What, constant};
use super::plan::{Place, Plan};
use super::{FROM, Left, MEMORY};

impl Plan {
    /// The memory and its data, as they were.
    pub(super) fn memory(&self, outline: &Outline<'_>) -> Module {
        let main = &outline.modules[self.libs[0].module];
        let mut memories = MemorySection::new();
        for memory in &main.memories {
            memories.memory(MemoryType {
                minimum: memory.initial,
                maximum: memory.maximum,
                memory64: memory.memory64,
                shared: memory.shared,
                page_size_log2: memory.page_size_log2,
            });
        }
        let mut exports = ExportSection::new();
        exports.export(MEMORY, ExportKind::Memory, 0);
        let mut module = Module::new();
        module.section(&memories).section(&exports);
        if !main.data.is_empty() {
            module.section(&RawSection {
                id: wasm_encoder::SectionId::Data as u8,
                data: main.data,
            });
        }
        module
    }

    /// All else as one module.
    pub(super) fn code(&self, outline: &Outline<'_>) -> Result<Code, Left> {
        let libs: Vec<&Lib<'_>> = self.libs.iter().map(|linked| &outline.modules[linked.module]).collect();
        let mut types = Types::default();
        let taken = u32::try_from(self.taken.len()).map_err(|_| "too many imports")?;
        let mut starts = Starts::default();
        let mut imports = ImportSection::new();
        for (n, (_, ty)) in self.taken.iter().enumerate() {
            imports.import(FROM, &n.to_string(), EntityType::Function(types.index(ty)?));
        }
        imports.import(FROM, MEMORY, EntityType::Memory(ANY_MEMORY));
        let (mut functions, mut tables, mut globals) =
            (FunctionSection::new(), TableSection::new(), GlobalSection::new());
        let (mut elements, mut code) = (ElementSection::new(), CodeSection::new());
        let (mut funcs, mut global, mut table, mut element) = (taken, 0, 0, 0);
        for lib in &libs {
            starts.funcs.push(funcs);
            starts.globals.push(global);
            starts.tables.push(table);
            starts.elements.push(element);
            let grown = |start: u32, by: usize| {
                u32::try_from(by)
                    .ok()
                    .and_then(|by| start.checked_add(by))
                    .ok_or("it is too large")
            };
            funcs = grown(funcs, lib.funcs.len())?;
            global = grown(global, lib.globals.len())?;
            table = grown(table, lib.tables.len())?;
            element = grown(element, lib.elements.len())?;
        }
        for (n, lib) in libs.iter().enumerate() {
            let mut own = Vec::with_capacity(lib.types.len());
            for ty in &lib.types {
                own.push(types.index(ty)?);
            }
            let mut map = Map {
                plan: self,
                libs: &libs,
                starts: &starts,
                lib: n,
                types: own,
            };
            for ty in &lib.funcs {
                functions.function(map.type_index(*ty).map_err(|_| "a type in it leads nowhere")?);
            }
            for ty in &lib.tables {
                tables.table(map.table_type(*ty).map_err(|_| "a table of another kind")?);
            }
            for each in &lib.globals {
                let ty = map.global_type(each.ty).map_err(|_| "a global of another kind")?;
                globals.global(
                    ty,
                    &map.const_expr(each.init_expr.clone())
                        .map_err(|_| "a global that is no constant")?,
                );
            }
            for each in &lib.elements {
                map.parse_element(&mut elements, each.clone())
                    .map_err(|_| "elements of another kind")?;
            }
            for body in &lib.bodies {
                map.parse_function_body(&mut code, body.clone())
                    .map_err(|_| "code that cannot be read")?;
            }
        }
        let mut exports = ExportSection::new();
        let mut given_types = Vec::new();
        let mut given: Vec<_> = self.given.iter().collect();
        given.sort();
        for (item, name) in given {
            let What::Alias {
                kind,
                instance,
                name: was,
            } = outline.items[*item].what
            else {
                continue;
            };
            let space = Space::of(kind)?;
            let lib = self.by_item[&outline.item((Space::Instance, instance))?];
            match self.export(outline, lib, was, space)? {
                Some(place) if space == Space::Func => {
                    let index = starts.index(space, place);
                    exports.export(name, ExportKind::Func, index);
                    given_types.push((name.clone(), types.index(self.type_of(&libs, place)?)?));
                }
                Some(_) => return Err("others use its table or globals"),
                None => {}
            }
        }
        let mut module = Module::new();
        let all = types.section()?;
        module.section(&all);
        module
            .section(&imports)
            .section(&functions)
            .section(&tables)
            .section(&globals)
            .section(&exports);
        module.section(&elements).section(&code);
        Ok(Code {
            module: module.finish(),
            stub: stub(&all, &imports, taken, &given_types),
            face: face(&types, &self.taken, &given_types)?,
        })
    }

    fn type_of<'a>(&'a self, libs: &[&'a Lib<'_>], place: Place) -> Result<&'a FuncType, Left> {
        let found = match place {
            Place::Taken(index) => self.taken.get(index as usize).map(|(_, ty)| ty),
            Place::Own(lib, index) => libs[lib]
                .funcs
                .get(index as usize)
                .and_then(|ty| libs[lib].types.get(*ty as usize)),
        };
        found.ok_or("a type in it leads nowhere")
    }
}

/// The linked code.
pub(super) struct Code {
    pub(super) module: Vec<u8>,
    /// A module of the same form that does nothing: by it a frame is tried without the code.
    pub(super) stub: Vec<u8>,
    /// Its form, as the frame names it.
    pub(super) face: ModuleType,
}

/// Of any size, for the size is what differs.
const ANY_MEMORY: MemoryType = MemoryType {
    minimum: 0,
    maximum: None,
    memory64: false,
    shared: false,
    page_size_log2: None,
};

fn stub(types: &TypeSection, imports: &ImportSection, taken: u32, given: &[(String, u32)]) -> Vec<u8> {
    let (mut functions, mut exports, mut code) = (FunctionSection::new(), ExportSection::new(), CodeSection::new());
    for (index, (name, ty)) in (taken..).zip(given) {
        functions.function(*ty);
        exports.export(name, ExportKind::Func, index);
        let mut body = Function::new([]);
        body.instructions().unreachable().end();
        code.function(&body);
    }
    let mut module = Module::new();
    module
        .section(types)
        .section(imports)
        .section(&functions)
        .section(&exports);
    module.section(&code);
    module.finish()
}

fn face(types: &Types, taken: &[(Core, FuncType)], given: &[(String, u32)]) -> Result<ModuleType, Left> {
    let mut face = ModuleType::new();
    for ty in &types.all {
        let ty = reencode::RoundtripReencoder
            .func_type(ty.clone())
            .map_err(|_| "types of another kind")?;
        face.ty().func_type(&ty);
    }
    for (n, (_, ty)) in taken.iter().enumerate() {
        let ty = types.by.get(ty).ok_or("a type in it leads nowhere")?;
        face.import(FROM, &n.to_string(), EntityType::Function(*ty));
    }
    face.import(FROM, MEMORY, EntityType::Memory(ANY_MEMORY));
    for (name, ty) in given {
        face.export(name, EntityType::Function(*ty));
    }
    Ok(face)
}

/// The types of all libraries, each once.
#[derive(Default)]
pub(super) struct Types {
    pub(super) all: Vec<FuncType>,
    pub(super) by: HashMap<FuncType, u32>,
}

impl Types {
    pub(super) fn index(&mut self, ty: &FuncType) -> Result<u32, Left> {
        if let Some(index) = self.by.get(ty) {
            return Ok(*index);
        }
        let plain = |ty: &wasmparser::ValType| match ty {
            wasmparser::ValType::Ref(r) => r.is_func_ref() || r.is_extern_ref(),
            _ => true,
        };
        if !ty.params().iter().chain(ty.results()).all(plain) {
            return Err("types that refer to one another");
        }
        let index = u32::try_from(self.all.len()).map_err(|_| "too many types")?;
        self.all.push(ty.clone());
        self.by.insert(ty.clone(), index);
        Ok(index)
    }

    pub(super) fn section(&self) -> Result<TypeSection, Left> {
        let mut section = TypeSection::new();
        for ty in &self.all {
            let ty = reencode::RoundtripReencoder
                .func_type(ty.clone())
                .map_err(|_| "types of another kind")?;
            section.ty().func_type(&ty);
        }
        Ok(section)
    }
}

/// Where each library's definitions begin in the linked code.
#[derive(Default)]
pub(super) struct Starts {
    pub(super) funcs: Vec<u32>,
    pub(super) tables: Vec<u32>,
    pub(super) globals: Vec<u32>,
    pub(super) elements: Vec<u32>,
}

impl Starts {
    pub(super) fn index(&self, space: Space, place: Place) -> u32 {
        match place {
            Place::Taken(index) => index,
            Place::Own(lib, index) => {
                index
                    + match space {
                        Space::Func => self.funcs[lib],
                        Space::Table => self.tables[lib],
                        _ => self.globals[lib],
                    }
            }
        }
    }
}

/// One library's indices, as they are in the linked code.
pub(super) struct Map<'p, 'a> {
    pub(super) plan: &'p Plan,
    pub(super) libs: &'p [&'p Lib<'a>],
    pub(super) starts: &'p Starts,
    pub(super) lib: usize,
    pub(super) types: Vec<u32>,
}

pub(super) type Nowhere = reencode::Error<Infallible>;

impl Map<'_, '_> {
    pub(super) fn found(&self, space: Space, of: &[Place], index: u32) -> Result<u32, Nowhere> {
        let place = of.get(index as usize).ok_or(Nowhere::CanonicalizedHeapTypeReference)?;
        Ok(self.starts.index(space, *place))
    }
}

impl Reencode for Map<'_, '_> {
    type Error = Infallible;

    fn type_index(&mut self, ty: u32) -> Result<u32, Nowhere> {
        self.types
            .get(ty as usize)
            .copied()
            .ok_or(Nowhere::CanonicalizedHeapTypeReference)
    }

    fn function_index(&mut self, func: u32) -> Result<u32, Nowhere> {
        self.found(Space::Func, &self.plan.libs[self.lib].funcs, func)
    }

    fn table_index(&mut self, table: u32) -> Result<u32, Nowhere> {
        self.found(Space::Table, &self.plan.libs[self.lib].tables, table)
    }

    fn global_index(&mut self, global: u32) -> Result<u32, Nowhere> {
        self.found(Space::Global, &self.plan.libs[self.lib].globals, global)
    }

    /// Nothing is copied at run time: all data is in its place from the start.
    fn data_index(&mut self, _: u32) -> Result<u32, Nowhere> {
        Err(Nowhere::CanonicalizedHeapTypeReference)
    }

    fn element_index(&mut self, element: u32) -> Result<u32, Nowhere> {
        Ok(self.starts.elements[self.lib] + element)
    }

    /// A library's place in memory and table is a constant of the main one. Said as such, for only then tables can be laid out.
    fn const_expr(&mut self, expr: ConstExpr<'_>) -> Result<wasm_encoder::ConstExpr, Nowhere> {
        match self.value(&expr) {
            Some(value) => Ok(wasm_encoder::ConstExpr::i32_const(value)),
            None => reencode::utils::const_expr(self, expr),
        }
    }
}

impl Map<'_, '_> {
    pub(super) fn value(&self, expr: &ConstExpr<'_>) -> Option<i32> {
        let mut ops = expr.get_operators_reader();
        let mut stack = Vec::new();
        loop {
            let value = match ops.read().ok()? {
                Operator::I32Const { value } => value,
                Operator::GlobalGet { global_index } => {
                    match self.plan.libs[self.lib].globals.get(global_index as usize)? {
                        Place::Own(lib, index) => {
                            let global = self.libs[*lib].globals.get(*index as usize)?;
                            (!global.ty.mutable).then(|| constant(&global.init_expr))??
                        }
                        Place::Taken(_) => return None,
                    }
                }
                Operator::I32Add => {
                    let (b, a): (i32, i32) = (stack.pop()?, stack.pop()?);
                    a.wrapping_add(b)
                }
                Operator::End if ops.eof() && stack.len() == 1 => return stack.pop(),
                _ => return None,
            };
            stack.push(value);
        }
    }
}
