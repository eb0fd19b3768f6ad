import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { chmodSync, chownSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { ownFolder } from "../../src/embedded/dataFolder.ts"
import { temporary } from "../../bench/servers/privateServers.ts"

describe("a data folder", () => {
  it.live("is made where it is missing, with those above it, and may be there", () =>
    Effect.gen(function* () {
      const folder = `${yield* temporary}/a/b/c`
      yield* ownFolder(folder)
      yield* ownFolder(folder)
      assert.isTrue(existsSync(folder))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live("that can't be used is named as DATA_DIR, with its path and the reason", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      writeFileSync(`${folder}/file`, "")
      symlinkSync("nowhere", `${folder}/dangling`)
      const long = `${folder}/${"x".repeat(300)}`
      for (const [path, reason] of [
        [`${folder}/file`, "is not a folder"],
        [`${folder}/file/data`, "not a directory (ENOTDIR)"],
        [`${folder}/dangling`, "no such file or directory (ENOENT)"],
        [`${folder}/dangling/data`, "no such file or directory (ENOENT)"],
        [long, "name too long (ENAMETOOLONG)"],
        // Where nothing can be made, and Node by itself would try for ever.
        ...(process.platform === "linux" ? [["/proc/data", "no such file or directory (ENOENT)"] as const] : []),
      ] as const) {
        assert.strictEqual((yield* Effect.flip(ownFolder(path))).message, `DATA_DIR: ${path}: ${reason}`)
      }
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.getuid?.() !== 0)("that somebody else has made for us is not used", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      chmodSync(folder, 0o1777)
      mkdirSync(`${folder}/planted`)
      chownSync(`${folder}/planted`, 12_345, 12_345)
      const error = yield* Effect.flip(ownFolder(`${folder}/planted/data`))
      assert.include(error.message, `DATA_DIR: ${folder}/planted: belongs to the user 12345`)
      assert.isFalse(existsSync(`${folder}/planted/data`))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )
})
