// node build.mjs [OUT]: makes a component of bees.js.

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { componentize } from "@bytecodealliance/componentize-js";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { component } = await componentize({
  sourcePath: here("bees.js"),
  witPath: here("../../proto/wit"),
  worldName: "module",
  // Bees have no HTTP: it is not offered.
  disableFeatures: ["http", "fetch-event"],
});
writeFileSync(process.argv[2] ?? here("hello.wasm"), component);
