use wasmparser::{Parser, Payload, Validator};

use super::*;

/// A library that calls the main module, which calls it back through the table; and a function of the host.
const COMPONENT: &str = r#"(component
  (import "host" (func $host (param "n" u32) (result u32)))
  (core module $main
    (type $t (func (param i32) (result i32)))
    (table (export "__indirect_function_table") 8 funcref)
    (memory (export "memory") 1)
    (global (export "lib:table_base") i32 (i32.const 1))
    (global (export "__stack_pointer") (mut i32) (i32.const 65536))
    (data (i32.const 16) "here")
    (func (export "through") (type $t) (call_indirect (type $t) (local.get 0) (i32.const 1))))
  (core module $lib
    (@dylink.0 (mem-info (memory 4 0) (table 2 0)))
    (type $t (func (param i32) (result i32)))
    (import "env" "memory" (memory 0))
    (import "env" "__indirect_function_table" (table 0 funcref))
    (import "env" "__table_base" (global $base i32))
    (import "env" "__stack_pointer" (global $stack (mut i32)))
    (import "env" "through" (func $through (type $t)))
    (import "env" "host" (func $host (type $t)))
    (global $own i32 (i32.add (global.get $base) (i32.const 4)))
    (elem (global.get $base) func $twice)
    (func $twice (type $t) (i32.add (local.get 0) (i32.add (local.get 0) (global.get $own))))
    (func (export "run") (type $t) (call $host (call $through (local.get 0)))))
  (core instance $m (instantiate $main))
  (alias core export $m "memory" (core memory $memory))
  (alias core export $m "__indirect_function_table" (core table $table))
  (alias core export $m "lib:table_base" (core global $base))
  (alias core export $m "__stack_pointer" (core global $stack))
  (alias core export $m "through" (core func $through))
  (core func $lowered (canon lower (func $host)))
  (core instance $env
    (export "memory" (memory $memory))
    (export "__indirect_function_table" (table $table))
    (export "__table_base" (global $base))
    (export "__stack_pointer" (global $stack))
    (export "through" (func $through))
    (export "host" (func $lowered)))
  (core instance $l (instantiate $lib (with "env" (instance $env))))
  (alias core export $l "run" (core func $run))
  (type $ty (func (param "n" u32) (result u32)))
  (func $lifted (type $ty) (canon lift (core func $run) (memory $memory)))
  (export "run" (func $lifted))
)"#;

fn component(text: &str) -> Vec<u8> {
    let component = wat::parse_str(text).unwrap();
    Validator::new().validate_all(&component).unwrap();
    component
}

#[test]
fn libraries_become_one_module_with_a_table_that_is_known_ahead() {
    let linked = link(&component(COMPONENT)).ok().unwrap();
    for part in [&linked.frame, &linked.code, &linked.stub] {
        Validator::new().validate_all(part).unwrap();
    }
    let (mut tables, mut elements, mut functions) = (0, 0, 0);
    for payload in Parser::new(0).parse_all(&linked.code) {
        match payload.unwrap() {
            Payload::TableSection(section) => tables += section.count(),
            Payload::ElementSection(section) => {
                for element in section {
                    let wasmparser::ElementKind::Active { offset_expr, .. } = element.unwrap().kind else {
                        panic!("an active segment");
                    };
                    assert_eq!(outline::constant(&offset_expr), Some(1));
                    elements += 1;
                }
            }
            Payload::FunctionSection(section) => functions += section.count(),
            Payload::DataSection(_) => panic!("data is the frame's"),
            _ => {}
        }
    }
    assert_eq!((tables, elements, functions), (1, 1, 3));
}

#[test]
fn the_code_is_the_same_whatever_is_in_memory() {
    let [one, other] = ["here", "there"].map(|data| link(&component(&COMPONENT.replace("here", data))).ok().unwrap());
    assert!(one.code == other.code && one.stub == other.stub && one.frame != other.frame);
    let larger = COMPONENT.replace("(memory (export \"memory\") 1)", "(memory (export \"memory\") 7)");
    assert!(one.code == link(&component(&larger)).ok().unwrap().code);
    // Where the code differs by one instruction it is other code.
    let changed = COMPONENT.replace("(i32.const 4)", "(i32.const 5)");
    assert!(one.code != link(&component(&changed)).ok().unwrap().code);
}

#[test]
fn what_is_not_understood_is_left_as_it_is() {
    for (was, is, why) in [
        (
            "(@dylink.0 (mem-info (memory 4 0) (table 2 0)))",
            "",
            "it has no libraries",
        ),
        (
            "(elem (global.get $base) func $twice)",
            "(elem (global.get $base) func $twice) (func $s) (start $s)",
            "a start function",
        ),
        (
            "(global $own i32",
            "(data \"x\") (func (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 0))) (global $own i32",
            "a library has a memory, a table or data of its own",
        ),
        (
            "(memory (export \"memory\") 1)",
            "(memory (export \"memory\") i64 1)",
            "its memory and table are of another form",
        ),
        (
            "(data (i32.const 16) \"here\")",
            "(data \"here\")",
            "its memory and table are of another form",
        ),
        (
            "(elem (global.get $base) func $twice)",
            "(tag) (elem (global.get $base) func $twice)",
            "exceptions",
        ),
        (
            "(core instance $env\n",
            "(core module $more (import \"m\" \"through\" (func (param i32) (result i32))))
             (core instance (instantiate $more (with \"m\" (instance $m)))) (core instance $env\n",
            "a library is handed on whole",
        ),
        (
            "(core instance $env\n",
            "(core module $more (import \"m\" \"t\" (table 8 funcref)) (start 0) (func))
             (core instance $e (export \"t\" (table $table)))
             (core instance (instantiate $more (with \"m\" (instance $e)))) (core instance $env\n",
            "a start function",
        ),
        (
            "(core module $main\n",
            "(core type $c (func)) (core module $main\n",
            "it names core types",
        ),
    ] {
        let text = COMPONENT.replacen(was, is, 1);
        assert_ne!(text, COMPONENT);
        // Not validated: some of it needs features that the engine has not.
        let found = link(&wat::parse_str(&text).unwrap()).err();
        assert_eq!(found, Some(why), "{is}");
    }
}

#[test]
fn bent_components_cost_no_more_than_an_answer() {
    let good = component(COMPONENT);
    for at in 0..good.len() {
        let _ = link(&good[..at]);
        for bit in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut bent = good.clone();
            bent[at] ^= bit;
            let _ = link(&bent);
        }
    }
}
