#!/usr/bin/env -S node --max-semi-space-size=16 --heap-growing-percent=80 --max-old-space-size=512
/**
 * The program `objectlog`.
 *
 * Node keeps what it compiled of the sources from one start to the next: a start costs a third less, and the compiler of
 * types need not be loaded. Where nothing can be written, nothing is kept. It only keeps what is imported after this.
 */
import { enableCompileCache } from "node:module"
import { join } from "node:path"
import { cacheFolder } from "./cacheFolder.ts"

// While a service is loaded there is nothing to finish: a signal ends it as it would later.
const end = () => process.exit(0)
if (process.argv[2] === "start" || process.argv[2] === "worker") process.on("SIGINT", end).on("SIGTERM", end)

enableCompileCache(join(cacheFolder(), "compiled"))
await import("./cli/program.ts")
process.off("SIGINT", end).off("SIGTERM", end)
