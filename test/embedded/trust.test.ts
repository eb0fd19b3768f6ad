/** Entries that another user made; only root can play that one. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { chmodSync, lchownSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { foreignEntry } from "../../src/embedded/foreignEntry.js"
import { temporary } from "../../bench/servers/privateServers.ts"

const other = 12_345

describe.skipIf(process.getuid?.() !== 0)("foreignEntry", () => {
  it.live("finds what somebody else may exchange, and nothing else", () =>
    Effect.gen(function* () {
      // Below the system's public folder a private one of ours, and in it a public one.
      const ours = yield* temporary
      const open = `${ours}/open`
      mkdirSync(open)
      chmodSync(open, 0o1777)
      const folder = (path: string, owner = 0, mode = 0o755) => {
        mkdirSync(path)
        chmodSync(path, mode)
        lchownSync(path, owner, owner)
        return path
      }
      const link = (target: string, path: string, owner = 0) => {
        symlinkSync(target, path)
        lchownSync(path, owner, owner)
        return path
      }
      const found = (path: string, account?: number) => foreignEntry(path, account)?.path.slice(ours.length)

      assert.isUndefined(found(folder(`${open}/ours`)))
      assert.isUndefined(found(`${open}/missing/too`))
      folder(`${open}/theirs`, other)
      assert.strictEqual(found(`${open}/theirs`), "/open/theirs")
      assert.strictEqual(found(`${open}/theirs/below`), "/open/theirs")
      assert.isUndefined(found(`${open}/theirs`, other), "the account that serves for us")
      assert.isUndefined(found(folder(`${ours}/given`, other)), "nobody but us can have put it there")
      assert.isUndefined(found(folder(`${open}/ours/given`, other)))

      assert.strictEqual(found(link("/etc", `${open}/planted`, other)), "/open/planted")
      assert.strictEqual(found(`${open}/planted/passwd`), "/open/planted")
      assert.isUndefined(found(`${link("/etc", `${open}/linked`)}/passwd`), "a link of ours is followed")
      assert.strictEqual(found(link(`${open}/theirs`, `${ours}/led`)), "/open/theirs", "and what it leads to looked at")
      assert.strictEqual(found(link("circle", `${ours}/circle`)), "/circle")

      assert.strictEqual(found(folder(`${open}/loose`, 0, 0o777)), "/open/loose")
      assert.isUndefined(found(folder(`${ours}/volume`, 0, 0o777)), "its owner wants it so")
      writeFileSync(`${ours}/program`, "")
      chmodSync(`${ours}/program`, 0o777)
      assert.strictEqual(found(`${ours}/program`), "/program")
      rmSync(`${ours}/program`)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer)),
  )
})
