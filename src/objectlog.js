#!/usr/bin/env -S NODE_OPTIONS="--max-old-space-size=512 ${NODE_OPTIONS}" node --max-semi-space-size=16 --heap-growing-percent=95
/**
 * Runs main.ts, and has Node keep what it compiled of it for the next start: that costs a third less, and 12 MiB, as the
 * compiler of types need not be loaded. Where nothing can be written, nothing is kept.
 *
 * JavaScript, since it is what Node keeps nothing of, and any type would load that compiler; and of a kind that an older Node
 * runs too, which is told what is missing.
 */
import * as nodeModule from "node:module"
import { join } from "node:path"
import { cacheFolder } from "./embedded/cacheFolder.js"
import { foreignEntry } from "./embedded/foreignEntry.js"

/** @type {(problem: string) => never} */
const refuse = (problem) => {
  process.stderr.write(`objectlog: ${problem}\n`)
  process.exit(1)
}

const nodeMajor = 24

if (Number(process.versions.node.split(".")[0]) < nodeMajor) {
  refuse(
    `Node ${nodeMajor} or newer is needed, this is ${process.version}: npm ci brings one along for npm start and npm run objectlog, unless NODE_ENV=production, --omit=dev or --ignore-scripts leave it out`,
  )
}

// While a service is loaded there is nothing to finish: a signal ends it as it would later.
const end = () => process.exit(0)
if (process.argv[2] === "start" || process.argv[2] === "worker") process.on("SIGINT", end).on("SIGTERM", end)

const cache = cacheFolder()
const compiled = cache === undefined ? undefined : join(cache, "compiled")
if (compiled !== undefined && foreignEntry(compiled) === undefined) nodeModule.enableCompileCache(compiled)
try {
  await import("./main.ts")
} catch (error) {
  // By its first word, the name: a path would be of a file of our own.
  const missing = /^Cannot find package '([^'/.][^']*)'/.exec(String(/** @type {Error} */ (error).message))
  if (missing === null) throw error
  refuse(`the package ${missing[1]} is not installed: run npm ci`)
}
process.off("SIGINT", end).off("SIGTERM", end)
