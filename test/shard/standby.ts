/** A standby of a shard's server: what is there when its address leads to the other side of a failover. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Layer } from "effect"
import { execFileSync } from "node:child_process"
import { chownSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { freePort } from "../../src/embedded/freePort.ts"
import type { EmbeddedShard } from "../../src/embedded/PostgresServers.ts"
import { startServer } from "../../src/embedded/supervisor.ts"
import { basePort, temporary } from "../../bench/servers/privateServers.ts"

/** Copies the server while it is stopped, starts both, and gives the port of the copy, which only reads. */
export const startStandby = Effect.fnUntraced(function* (primary: EmbeddedShard) {
  const command = /^(.*\/postgres) -D /.exec(
    execFileSync("ps", ["-o", "args=", "-p", String(primary.pid)], { encoding: "utf8" }),
  )![1]!
  const { gid, uid } = statSync(primary.dataDir)
  const { services } = yield* Effect.map(Layer.build(NodeServices.layer), (services) => ({ services }))
  const folder = yield* Effect.provideContext(temporary, services)
  const data = `${folder}/standby`
  const port = (yield* freePort(basePort + 30, "127.0.0.1"))!
  yield* primary.control.stop("SIGINT")
  yield* Effect.sync(() => {
    // Not by Node: as root, the files belong to another user and have to stay his.
    execFileSync("cp", ["-Rp", primary.dataDir, data])
    rmSync(`${data}/postmaster.pid`, { force: true })
    writeFileSync(`${data}/standby.signal`, "")
    chownSync(`${data}/standby.signal`, uid, gid)
  })
  yield* primary.control.start
  yield* startServer({
    name: "standby",
    command,
    args: ["-D", data, "-p", String(port), "-h", "127.0.0.1", "-k", ""],
    logFile: `${folder}/standby.log`,
    account: process.getuid?.() === 0 ? { uid, gid } : undefined,
    stopSignal: "SIGINT",
    ready: () =>
      Effect.sync(() => {
        try {
          return readFileSync(`${data}/postmaster.pid`, "utf8").trimEnd().endsWith("ready")
        } catch {
          return false
        }
      }),
  })
  return port
})
