#!/usr/bin/env -S node --max-semi-space-size=16 --heap-growing-percent=120 --max-old-space-size=512
/**
 * Runs main.ts, and has Node keep what it compiled of it for the next start: that costs a third less, and 12 MiB, as the
 * compiler of types need not be loaded. Where nothing can be written, nothing is kept.
 *
 * JavaScript, since it is what Node keeps nothing of, and any type would load that compiler.
 */
import { enableCompileCache } from "node:module"
import { join } from "node:path"
import { cacheFolder } from "./cacheFolder.js"

// While a service is loaded there is nothing to finish: a signal ends it as it would later.
const end = () => process.exit(0)
if (process.argv[2] === "start" || process.argv[2] === "worker") process.on("SIGINT", end).on("SIGTERM", end)

const cache = cacheFolder()
if (cache !== undefined) enableCompileCache(join(cache, "compiled"))
await import("./main.ts")
process.off("SIGINT", end).off("SIGTERM", end)
