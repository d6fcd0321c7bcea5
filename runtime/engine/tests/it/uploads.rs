use std::time::{Duration, Instant};

use skep_engine::{Code, CompileError, Compiler, CompilerLimits, Error};
use skep_model::Bytes;
use skep_model::id::Digest;
use wasm_encoder::{
    CodeSection, Component, ComponentExportKind, ComponentExportSection, ComponentImportSection,
    ComponentInstanceSection, ComponentTypeRef, ComponentTypeSection, ConstExpr, DataSection, Function,
    FunctionSection, InstanceType, Instruction, MemorySection, MemoryType, Module, ModuleSection,
    NestedComponentSection, RawSection, RefType, TableSection, TableType, TypeSection, ValType,
};

use crate::zoo::{compiler, engine, wasm};

const HANDLER: &str = "skep:bee/handler@0.1.0";

async fn refused_by(compiler: &Compiler, upload: impl Into<Bytes>) -> CompileError {
    compiler.compile(upload.into()).await.expect_err("a refusal")
}

async fn refused(upload: impl Into<Bytes>) -> CompileError {
    refused_by(&compiler(CompilerLimits::default()), upload).await
}

/// Something under the handler's name, so that an upload is not refused for the lack of it.
fn with_handler(component: &mut Component) {
    let mut instances = ComponentInstanceSection::new();
    instances.export_items(Vec::<(&str, ComponentExportKind, u32)>::new());
    component.section(&instances);
    let mut exports = ComponentExportSection::new();
    exports.export(HANDLER, ComponentExportKind::Instance, 0, None);
    component.section(&exports);
}

fn component_of(modules: &[Module]) -> Vec<u8> {
    let mut component = Component::new();
    for module in modules {
        component.section(&ModuleSection(module));
    }
    with_handler(&mut component);
    component.finish()
}

fn module_of(function: &Function) -> Module {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32], []);
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut code = CodeSection::new();
    code.function(function);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&code);
    module
}

/// `count` locals, all alive across many branches.
fn locals(count: u32, branches: u32) -> Function {
    let mut function = Function::new([(count, ValType::I64)]);
    for n in 0..branches {
        function.instruction(&Instruction::Block(wasm_encoder::BlockType::Empty));
        function.instruction(&Instruction::LocalGet(0));
        function.instruction(&Instruction::BrIf(0));
        function.instruction(&Instruction::I64Const(n.into()));
        function.instruction(&Instruction::LocalSet(1 + n % count));
        function.instruction(&Instruction::End);
    }
    function.instruction(&Instruction::End);
    function
}

fn loops(depth: u32) -> Function {
    let mut function = Function::new([]);
    for _ in 0..depth {
        function.instruction(&Instruction::Loop(wasm_encoder::BlockType::Empty));
        function.instruction(&Instruction::LocalGet(0));
        function.instruction(&Instruction::BrIf(0));
    }
    for _ in 0..=depth {
        function.instruction(&Instruction::End);
    }
    function
}

fn doubling(levels: u32) -> Vec<u8> {
    let mut inner = Component::new();
    inner.section(&ModuleSection(&Module::new()));
    for _ in 0..levels {
        let mut outer = Component::new();
        outer.section(&NestedComponentSection(&inner));
        let mut instances = ComponentInstanceSection::new();
        for _ in 0..2 {
            instances.instantiate(0, Vec::<(&str, ComponentExportKind, u32)>::new());
        }
        outer.section(&instances);
        inner = outer;
    }
    let mut component = Component::new();
    component.section(&NestedComponentSection(&inner));
    let mut instances = ComponentInstanceSection::new();
    instances.export_items(Vec::<(&str, ComponentExportKind, u32)>::new());
    instances.instantiate(0, Vec::<(&str, ComponentExportKind, u32)>::new());
    component.section(&instances);
    let mut exports = ComponentExportSection::new();
    exports.export(HANDLER, ComponentExportKind::Instance, 0, None);
    component.section(&exports);
    component.finish()
}

/// Component types inside component types: three bytes a level.
fn nested_types(levels: usize) -> Vec<u8> {
    let mut body = vec![1];
    for _ in 0..levels {
        body.extend([0x41, 1, 1]);
    }
    body.extend([0x41, 0]);
    let mut component = Component::new();
    component.section(&RawSection { id: 7, data: &body });
    with_handler(&mut component);
    component.finish()
}

#[tokio::test]
async fn what_is_no_component_is_refused_by_name() {
    for (upload, code, text) in [
        (&b"not wasm at all"[..], Code::NotWasm, "not WebAssembly"),
        (b"", Code::NotWasm, "not WebAssembly"),
        (b"  (component)", Code::TextForm, "only the binary form"),
        (b";; hi\n(module)", Code::TextForm, "only the binary form"),
        (b"\0as", Code::Truncated, "cut off"),
        (b"\0asm\x01\0\0\0", Code::CoreModule, "wasm32-wasip2"),
        (b"\0asm\x77\0\x01\0", Code::Invalid, "unknown version"),
        (b"\0asm\x0d\0\x01\0", Code::NoExport, HANDLER),
        (b"\0asm\x0d\0\x01\0\x63\x01\0", Code::Invalid, "not valid"),
    ] {
        let error = refused(upload).await;
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_truncated_or_bent_upload_is_refused() {
    let whole = wasm();
    for keep in [9, 1_000, whole.len() / 2, whole.len() - 1] {
        let error = refused(whole.slice(..keep)).await;
        assert!(matches!(error.code, Code::Truncated | Code::Invalid), "{keep}: {error}");
    }
    let mut bent = whole.to_vec();
    let middle = bent.len() / 2;
    for byte in &mut bent[middle..middle + 64] {
        *byte ^= 0x55;
    }
    // Perhaps it hits only data: then it compiles, and that is fine too.
    if let Err(error) = compiler(CompilerLimits::default()).compile(bent.into()).await {
        assert!(error.code.is_permanent(), "{error}");
    }
}

#[tokio::test]
async fn an_import_that_is_not_offered_is_named() {
    for name in [
        "wasi:http/incoming-handler@0.2.0",
        "acme:db/sql@1.0.0",
        "wasi:cli/environment@0.3.0",
        "plain",
    ] {
        let mut types = ComponentTypeSection::new();
        types.instance(&InstanceType::new());
        let mut imports = ComponentImportSection::new();
        imports.import(name, ComponentTypeRef::Instance(0));
        let mut component = Component::new();
        component.section(&types).section(&imports);
        let error = refused(component.finish()).await;
        assert_eq!(error.code, Code::ImportNotOffered, "{error}");
        assert!(error.message.contains(name), "{error}");
    }
    // The right name, the wrong function.
    let mut instance = InstanceType::new();
    instance
        .ty()
        .function()
        .params([("x", wasm_encoder::PrimitiveValType::Bool)])
        .result(None);
    instance.export("begin", ComponentTypeRef::Func(0));
    let mut types = ComponentTypeSection::new();
    types.instance(&instance);
    let mut imports = ComponentImportSection::new();
    imports.import("skep:bee/step@0.1.0", ComponentTypeRef::Instance(0));
    let mut component = Component::new();
    component.section(&types).section(&imports);
    let mut instances = ComponentInstanceSection::new();
    instances.export_items(Vec::<(&str, ComponentExportKind, u32)>::new());
    component.section(&instances);
    let mut exports = ComponentExportSection::new();
    exports.export(HANDLER, ComponentExportKind::Instance, 1, None);
    component.section(&exports);
    let error = refused(component.finish()).await;
    assert_eq!(error.code, Code::ImportNotOffered, "{error}");
    assert!(error.message.contains("begin"), "{error}");
}

#[tokio::test]
async fn an_empty_handler_compiles_but_does_not_load() {
    let upload = component_of(&[]);
    let artifact = compiler(CompilerLimits::default())
        .compile(upload.clone().into())
        .await
        .unwrap();
    let error = engine().load(Digest::of(&upload), artifact).await.unwrap_err();
    assert!(matches!(error, Error::Export(_)), "{error}");
}

#[tokio::test]
async fn sizes_are_bounded() {
    let small = CompilerLimits {
        upload_bytes: 1_000,
        ..CompilerLimits::default()
    };
    let error = refused_by(&compiler(small), wasm()).await;
    assert_eq!(error.code, Code::TooLarge, "{error}");
    let small = CompilerLimits {
        artifact_bytes: 100_000,
        ..CompilerLimits::default()
    };
    let error = refused_by(&compiler(small), wasm()).await;
    assert_eq!(error.code, Code::TooLarge, "{error}");
}

#[tokio::test]
async fn bombs_are_refused_before_they_are_compiled() {
    let table = |initial| {
        let mut tables = TableSection::new();
        tables.table(TableType {
            element_type: RefType::FUNCREF,
            table64: false,
            minimum: initial,
            maximum: None,
            shared: false,
        });
        let mut module = Module::new();
        module.section(&tables);
        module
    };
    let memory = |pages| {
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: pages,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        let mut module = Module::new();
        module.section(&memories);
        module
    };
    let segments = {
        let mut data = DataSection::new();
        for _ in 0..60_000 {
            data.active(0, &ConstExpr::i32_const(0), []);
        }
        let mut module = memory(1);
        module.section(&data);
        module
    };
    let functions = {
        let mut types = TypeSection::new();
        types.ty().function([], []);
        let mut functions = FunctionSection::new();
        let mut code = CodeSection::new();
        let mut empty = Function::new([]);
        empty.instruction(&Instruction::End);
        for _ in 0..60_000 {
            functions.function(0);
            code.function(&empty);
        }
        let mut module = Module::new();
        module.section(&types).section(&functions).section(&code);
        module
    };
    for (upload, text) in [
        (doubling(24), "instances, nested components expanded"),
        (doubling(60), "instances, nested components expanded"),
        (
            component_of(&[module_of(&locals(50_000, 10_000))]),
            "locals of one function",
        ),
        (component_of(&[module_of(&loops(60_000))]), "nesting of one function"),
        (component_of(&[module_of(&locals(10, 200_000))]), "size of one function"),
        (component_of(&vec![Module::new(); 1_000]), "number of core modules"),
        (component_of(&[functions]), "number of functions"),
        (component_of(&[segments]), "number of data segments"),
        (component_of(&[table(1_000_000)]), "size of one table"),
        (component_of(&vec![table(20_000); 50]), "size of all tables"),
        (component_of(&vec![memory(10_000); 2]), "initial memory"),
    ] {
        let start = Instant::now();
        let error = refused(upload).await;
        assert_eq!(error.code, Code::TooComplex, "{error}");
        assert!(error.message.contains(text), "{text}: {error}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{text}: {:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn types_nested_without_end_do_not_hurt_the_node() {
    let compiler = compiler(CompilerLimits::default());
    for levels in [500, 2_000, 1_000_000] {
        // The compiler has a larger stack than it takes to abort a node, so the smaller ones may even be compiled.
        match compiler.compile(nested_types(levels).into()).await {
            Ok(artifact) => {
                assert!(levels <= 2_000, "{levels}");
                let error = engine().load(Digest::of(b"nested"), artifact).await.unwrap_err();
                assert!(matches!(error, Error::Export(_)), "{error}");
            }
            Err(error) => assert!(
                matches!(error.code, Code::TooComplex | Code::Invalid),
                "{levels}: {} {error}",
                error.code
            ),
        }
    }
}

/// The second line of defence: with the counts out of the way, the process's own limits hold.
#[tokio::test]
async fn the_compiler_process_is_limited_in_memory_cpu_and_time() {
    let open = CompilerLimits {
        locals: u64::MAX,
        nesting: u64::MAX,
        body_bytes: u64::MAX,
        ..CompilerLimits::default()
    };
    let tight = CompilerLimits {
        memory_bytes: 512 << 20,
        ..open
    };
    let error = refused_by(&compiler(tight), component_of(&[module_of(&locals(40_000, 20_000))])).await;
    assert_eq!(error.code, Code::OutOfMemory, "{error}");
    let hasty = CompilerLimits { cpu_s: 1, ..open };
    let error = refused_by(&compiler(hasty), component_of(&[module_of(&loops(40_000))])).await;
    assert_eq!(error.code, Code::CpuTime, "{error}");
    // After all that, an honest module still compiles.
    assert!(compiler(CompilerLimits::default()).compile(wasm()).await.is_ok());
}

#[tokio::test]
async fn whatever_becomes_of_the_compiler_process_is_told() {
    let shell = |script: &str, wall_s| {
        let limits = CompilerLimits {
            wall_s,
            ..CompilerLimits::default()
        };
        Compiler::new("/bin/sh".into(), vec!["-c".into(), script.into()], limits)
    };
    let upload = wasm();
    for (script, code) in [
        ("kill -9 $$", Code::CompilerKilled),
        ("kill -11 $$", Code::CompilerKilled),
        ("kill -SYS $$", Code::CompilerKilled),
        ("exit 1", Code::CompilerKilled),
        ("echo 'cannot limit the compiler process' >&2; exit 4", Code::Node),
        ("exit 0", Code::CompilerKilled),
        ("echo nonsense; exit 3", Code::CompilerKilled),
        (
            "echo 'memory allocation of 9 bytes failed' >&2; kill -6 $$",
            Code::OutOfMemory,
        ),
        (
            "echo 'thread x has overflowed its stack' >&2; kill -6 $$",
            Code::TooComplex,
        ),
    ] {
        let error = refused_by(&shell(script, 30), upload.clone()).await;
        assert_eq!(error.code, code, "{script}: {error}");
    }
    let start = Instant::now();
    let error = refused_by(&shell("exec sleep 60", 1), upload.clone()).await;
    assert_eq!(error.code, Code::Timeout, "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    let none = Compiler::new("/no/such/file".into(), Vec::new(), CompilerLimits::default());
    assert_eq!(refused_by(&none, upload).await.code, Code::Node);
}
