// node build.mjs TOOLS WIT OUT: makes a component of bees.js.

import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [tools, witPath, out] = process.argv.slice(2);
const library = `${tools}/node_modules/@bytecodealliance/componentize-js/src/componentize.js`;
const { componentize } = await import(pathToFileURL(library));
const { component } = await componentize({
  sourcePath: new URL("bees.js", import.meta.url).pathname,
  witPath,
  worldName: "module",
  // Bees have no HTTP: it is not offered.
  disableFeatures: ["http", "fetch-event"],
});
writeFileSync(out, component);
