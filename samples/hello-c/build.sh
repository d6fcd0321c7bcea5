#!/bin/sh
# build.sh [OUT]: makes a component of hello.c. Wants a C compiler that knows wasm32 (here zig's, `pip install ziglang`; any clang with
# wasi-libc does: set CC), and jco (`npm install @bytecodealliance/jco`; `wasm-tools component new` does the same).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/hello.wasm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
${CC:-python3 -m ziglang cc} --target=wasm32-wasi -mexec-model=reactor -Os -Wall -Wextra -Werror -Wno-unused-parameter -I "$here/bindings" \
    "$here/hello.c" "$here/bindings/module.c" "$here/bindings/module_component_type.o" -o "$work/core.wasm"
${JCO:-npx jco} new --wasi-reactor "$work/core.wasm" -o "$out"
