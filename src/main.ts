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

enableCompileCache(join(cacheFolder(), "compiled"))
await import("./cli/program.ts")
