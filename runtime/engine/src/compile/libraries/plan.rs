//! Which instances become one, what that takes from outside and gives, and where it stands among the rest.

use std::collections::{BTreeSet, HashMap};

use wasmparser::{FuncType, Instance, TypeRef};

use super::Left;
use super::outline::{Core, Outline, Space, What, space_of};

/// Where a definition of a library is found in the linked code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Taken from outside: the n-th import.
    Taken(u32),
    /// Defined by the n-th linked library: the m-th that it defines of that kind.
    Own(usize, u32),
}

/// A library as it is linked.
pub(super) struct Linked {
    pub(super) module: usize,
    pub(super) funcs: Vec<Place>,
    pub(super) tables: Vec<Place>,
    pub(super) globals: Vec<Place>,
}

pub(super) struct Plan {
    pub(super) libs: Vec<Linked>,
    /// By item of their instances.
    pub(super) by_item: HashMap<usize, usize>,
    /// Functions that the code takes from outside, with their types.
    pub(super) taken: Vec<(Core, FuncType)>,
    /// Items that cannot stand before the code, for they use what it exports; libraries among them.
    pub(super) after: BTreeSet<usize>,
    /// What is used of libraries by others, by item of the alias: its name in the code's exports.
    pub(super) given: HashMap<usize, String>,
    /// Items that only libraries used.
    pub(super) dropped: BTreeSet<usize>,
    /// The item after which the code stands: the last library.
    pub(super) place: usize,
}

impl Plan {
    pub(super) fn of(outline: &Outline<'_>) -> Result<Self, Left> {
        let (main, instances) = members(outline)?;
        let mut plan = Self {
            libs: Vec::new(),
            by_item: HashMap::new(),
            taken: Vec::new(),
            after: BTreeSet::new(),
            given: HashMap::new(),
            dropped: BTreeSet::new(),
            place: *instances.last().ok_or("it has no libraries")?,
        };
        let mut taken = HashMap::new();
        for item in instances {
            plan.add(outline, item, main, &mut taken)?;
        }
        plan.sort(outline)?;
        Ok(plan)
    }

    pub(super) fn add(
        &mut self,
        outline: &Outline<'_>,
        item: usize,
        main: usize,
        taken: &mut HashMap<Core, u32>,
    ) -> Result<(), Left> {
        let module = outline.module_of(item).ok_or("a library is no instance")?;
        let lib = &outline.modules[module];
        if let Some(odd) = lib.odd {
            return Err(odd);
        }
        let own = self.libs.len();
        if (own == 0) != (item == main)
            || (item != main && !(lib.tables.is_empty() && lib.memories.is_empty() && lib.data.is_empty()))
        {
            return Err("a library has a memory, a table or data of its own");
        }
        let mut linked = Linked {
            module,
            funcs: Vec::new(),
            tables: Vec::new(),
            globals: Vec::new(),
        };
        for import in &lib.imports {
            let space = space_of(&import.ty).ok_or("exceptions")?;
            let (inside, core) = match argument(outline, item, import)? {
                Given::Core(core) => (None, Some(core)),
                Given::Of(instance, name, core) => match self.by_item.get(&instance) {
                    Some(lib) => (Some((*lib, name)), None),
                    None => (None, Some(core.ok_or("a library is given an instance whole")?)),
                },
            };
            let place = match inside {
                Some((from, name)) => self.export(outline, from, name, space)?,
                None => None,
            };
            match import.ty {
                TypeRef::Func(ty) => linked.funcs.push(match place {
                    Some(place) => place,
                    None => {
                        let core = core.ok_or("an export in it is missing")?;
                        let ty = lib.types.get(ty as usize).ok_or("a type in it leads nowhere")?;
                        let next = u32::try_from(self.taken.len()).map_err(|_| "too many imports")?;
                        let index = *taken.entry(core).or_insert(next);
                        if index == next {
                            self.taken.push((core, ty.clone()));
                        }
                        Place::Taken(index)
                    }
                }),
                TypeRef::Table(_) => linked.tables.push(place.ok_or("a table comes from outside")?),
                TypeRef::Global(_) => linked.globals.push(place.ok_or("a global comes from outside")?),
                // There is one; see `members`.
                TypeRef::Memory(_) if inside.is_some_and(|(from, _)| from == 0) => {}
                _ => return Err("a memory or tag comes from outside"),
            }
        }
        let count = |n: usize| 0..u32::try_from(n).unwrap_or(0);
        linked.funcs.extend(count(lib.funcs.len()).map(|n| Place::Own(own, n)));
        linked
            .tables
            .extend(count(lib.tables.len()).map(|n| Place::Own(own, n)));
        linked
            .globals
            .extend(count(lib.globals.len()).map(|n| Place::Own(own, n)));
        self.by_item.insert(item, own);
        self.libs.push(linked);
        Ok(())
    }

    /// Where an export of a library is found. None: it is the memory.
    pub(super) fn export(
        &self,
        outline: &Outline<'_>,
        lib: usize,
        name: &str,
        space: Space,
    ) -> Result<Option<Place>, Left> {
        let linked = &self.libs[lib];
        let (kind, index) = *outline.modules[linked.module]
            .exports
            .get(name)
            .ok_or("an export in it is missing")?;
        if Space::of(kind)? != space {
            return Err("an export in it is of another kind");
        }
        let all = match space {
            Space::Func => &linked.funcs,
            Space::Table => &linked.tables,
            Space::Global => &linked.globals,
            Space::Memory | Space::Instance => return Ok(None),
        };
        all.get(index as usize)
            .copied()
            .map(Some)
            .ok_or("an export in it leads nowhere")
    }

    /// What stands after the code, what goes, and what others use of it.
    pub(super) fn sort(&mut self, outline: &Outline<'_>) -> Result<(), Left> {
        let mut used = BTreeSet::new();
        for (item, is) in outline.items.iter().enumerate() {
            let mut after = self.by_item.contains_key(&item);
            for core in outline.needs(item)? {
                after |= self.after.contains(&outline.item(core)?);
            }
            if after {
                self.after.insert(item);
            }
            // What stands before the last library and is moved behind it would take another place among its kind.
            if after && item < self.place && outline.defines[item].is_none() {
                return Err("it lifts functions before all libraries are there");
            }
            if matches!(is.what, What::Canon(_) | What::Plain)
                || (outline.module_of(item).is_some() && !self.by_item.contains_key(&item))
            {
                used.insert(item);
            }
        }
        // Backwards, for what is used was defined before.
        for item in (0..outline.items.len()).rev() {
            if self.by_item.contains_key(&item) {
                // What it takes is in the code now.
                self.dropped.insert(item);
            } else if used.contains(&item) {
                for core in outline.needs(item)? {
                    used.insert(outline.item(core)?);
                }
            } else if !matches!(outline.items[item].what, What::Module) {
                self.dropped.insert(item);
            }
        }
        for (item, is) in outline.items.iter().enumerate() {
            if let What::Instance(Instance::Instantiate { args, .. }) = &is.what
                && !self.dropped.contains(&item)
            {
                for arg in args {
                    if self.by_item.contains_key(&outline.item((Space::Instance, arg.index))?) {
                        return Err("a library is handed on whole");
                    }
                }
            }
        }
        for (core, _) in &self.taken {
            let item = outline.item(*core)?;
            if self.after.contains(&item) {
                return Err("its libraries need what needs them");
            }
            used.insert(item);
            self.dropped.remove(&item);
            // An alias needs its instance, which is there: it was instantiated for others than libraries, or stays for this.
            let mut need = outline.needs(item)?;
            while let Some(core) = need.pop() {
                let item = outline.item(core)?;
                self.dropped.remove(&item);
                need.extend(outline.needs(item)?);
            }
        }
        for item in 0..outline.items.len() {
            if let What::Alias { instance, .. } = outline.items[item].what
                && !self.dropped.contains(&item)
                && self.by_item.contains_key(&outline.item((Space::Instance, instance))?)
            {
                self.given.insert(item, format!("g{}", self.given.len()));
            }
        }
        Ok(())
    }
}

/// The instances that are linked: the one with memory and table, and all that share them. In order; the first is the main one.
pub(super) fn members(outline: &Outline<'_>) -> Result<(usize, Vec<usize>), Left> {
    let table_of = |item: usize| {
        let lib = &outline.modules[outline.module_of(item)?];
        let import = lib.imports.iter().find(|i| matches!(i.ty, TypeRef::Table(_)))?;
        match argument(outline, item, import).ok()? {
            Given::Of(instance, ..) => Some(instance),
            Given::Core(_) => None,
        }
    };
    let instances: Vec<usize> = (0..outline.items.len())
        .filter(|item| outline.module_of(*item).is_some())
        .collect();
    let is_library = |item: &usize| {
        outline
            .module_of(*item)
            .is_some_and(|m| outline.modules.get(m).is_some_and(|lib| lib.library))
    };
    if instances
        .iter()
        .any(|item| outline.module_of(*item).is_none_or(|m| m >= outline.modules.len()))
    {
        return Err("an index in it leads nowhere");
    }
    let main = instances
        .iter()
        .copied()
        .filter(is_library)
        .find_map(table_of)
        .ok_or("it has no libraries")?;
    let module = outline.module_of(main).ok_or("its table is of no module")?;
    let lib = &outline.modules[module];
    let plain = lib.memories.len() == 1
        && lib
            .memories
            .iter()
            .all(|m| !m.memory64 && !m.shared && m.page_size_log2.is_none())
        && lib.imported(Space::Memory) == 0
        && lib.data_at_constants;
    if !plain || lib.tables.len() != 1 || lib.imported(Space::Table) != 0 {
        return Err("its memory and table are of another form");
    }
    let members: Vec<usize> = instances
        .iter()
        .copied()
        .filter(|item| *item == main || is_library(item) || table_of(*item) == Some(main))
        .collect();
    let mut modules: Vec<_> = members.iter().map(|item| outline.module_of(*item)).collect();
    modules.sort_unstable();
    modules.dedup();
    // Others may instantiate the same module.
    let all = instances
        .iter()
        .filter(|item| modules.contains(&outline.module_of(**item)))
        .count();
    if members.first() != Some(&main) || modules.len() != members.len() || all != members.len() {
        return Err("a library is there twice");
    }
    Ok((main, members))
}

/// What an instance is given for an import.
pub(super) enum Given<'a> {
    /// Of the instance that this item makes, by name; and as what the outer component has it, if it does.
    Of(usize, &'a str, Option<Core>),
    Core(Core),
}

pub(super) fn argument<'a>(
    outline: &Outline<'a>,
    item: usize,
    import: &wasmparser::Import<'a>,
) -> Result<Given<'a>, Left> {
    let What::Instance(Instance::Instantiate { args, .. }) = &outline.items[item].what else {
        return Err("a library is no instance");
    };
    let arg = args
        .iter()
        .find(|arg| arg.name == import.module)
        .ok_or("an argument in it is missing")?;
    let instance = outline.item((Space::Instance, arg.index))?;
    let What::Instance(Instance::FromExports(exports)) = &outline.items[instance].what else {
        return Ok(Given::Of(instance, import.name, None));
    };
    let export = exports
        .iter()
        .find(|e| e.name == import.name)
        .ok_or("an argument in it is missing")?;
    let core = (Space::of(export.kind)?, export.index);
    match &outline.items[outline.item(core)?].what {
        What::Alias { instance, name, .. } => {
            let instance = outline.item((Space::Instance, *instance))?;
            Ok(Given::Of(instance, name, Some(core)))
        }
        _ => Ok(Given::Core(core)),
    }
}
