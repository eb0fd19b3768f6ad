import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, FileSystem, Layer, Option, Schema, Scope } from "effect"
import type { SqlClient } from "effect/sql"
import { type ChildProcess, spawn } from "node:child_process"
import { lchownSync, readdirSync, readFileSync } from "node:fs"
import { type AddressInfo, createServer, type Server } from "node:net"
import { fileURLToPath } from "node:url"
import { serverAccount } from "../../src/embedded/account.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers, type PostgresServersOptions } from "../../src/embedded/PostgresServers.ts"
import { inspect } from "../../src/embedded/reaper.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { basePort, copyTemplate, temporary, TestPostgres } from "../../bench/servers/privateServers.ts"

const port = basePort + 40

/** Starts servers in the scope of the caller. */
const start = (options: PostgresServersOptions) =>
  Effect.map(
    Layer.build(Layer.fresh(PostgresServers.layer(options))),
    (context) => Context.get(context, PostgresServers).shards,
  )

const store = (sql: SqlClient.SqlClient) =>
  Effect.andThen(sql`create table kept (value int)`, sql`insert into kept values (7)`)
const stored = (sql: SqlClient.SqlClient) => sql`select value from kept`

/** A port that somebody listens on. */
const occupied = Effect.map(
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const server = createServer().listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void))),
  ),
  (server) => (server.address() as AddressInfo).port,
)

/** Polls until the effect tells true; a defect after ten seconds. */
const until = <E, R>(what: string, effect: Effect.Effect<boolean, E, R>) =>
  Effect.gen(function* () {
    while (!(yield* effect)) yield* Effect.sleep("20 millis")
  }).pipe(
    Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.die(new Error(`waited in vain: ${what}`)) }),
  )

const Held = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({ pids: Schema.Array(Schema.Int) }),
    Schema.Struct({ failed: Schema.String, message: Schema.String }),
  ]),
)

const program = fileURLToPath(new URL("holdServers.ts", import.meta.url))

/** Another process that holds the servers of a folder, and what it said. */
const hold = Effect.fnUntraced(function* (dataDir: string) {
  const parent = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [program, dataDir, String(port)], { stdio: ["ignore", "pipe", "inherit"] }),
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL")),
  )
  const line = yield* Effect.promise(() => firstLine(parent))
  return { parent, said: yield* Schema.decodeUnknownEffect(Held)(line) }
})

/** Kills a process and waits for its end. */
const killed = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback((resume) => {
    child.once("exit", () => resume(Effect.void))
    child.kill("SIGKILL")
  })

/** The reapers of a parent. */
const reapersOf = (parent: number): ReadonlyArray<number> =>
  readdirSync("/proc")
    .map(Number)
    .filter((pid) => {
      try {
        const isChild = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")[1] === String(parent)
        return isChild && readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("objectlog-reaper")
      } catch {
        return false
      }
    })

const firstLine = async (child: ChildProcess): Promise<string> => {
  let text = ""
  for await (const chunk of child.stdout!) {
    text += String(chunk)
    if (text.includes("\n")) break
  }
  return text
}

describe("PostgresServers", () => {
  it.live("answers, and is gone with its scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { shards } = Context.get(yield* Layer.buildWithScope(TestPostgres.layer(2), scope), PostgresServers)
      assert.deepStrictEqual(
        shards.map(({ name }) => name),
        ["shard-a", "shard-b"],
      )
      for (const shard of shards) {
        const [row] = yield* onShard(
          shard,
          (sql) => sql<{ version: string; fsync: string; coding: string }>`
            select version(), current_setting('fsync') as fsync, current_setting('server_encoding') as coding`,
        )
        assert.match(row!.version, /^PostgreSQL 18\./)
        assert.deepStrictEqual([row!.fsync, row!.coding], ["on", "UTF8"])
      }
      const pids = shards.map(({ pid }) => pid)
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      for (const pid of pids) assert.isUndefined(yield* inspect(pid))
    }),
  )

  it.live("finds its data again after a stop and after a kill", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      yield* copyTemplate(dataDir, ["shard-1"])
      yield* Effect.scoped(Effect.flatMap(start({ dataDir, shards: 1, port }), ([shard]) => onShard(shard!, store)))
      const [shard] = yield* start({ dataDir, shards: 1, port })
      assert.deepStrictEqual(yield* onShard(shard!, stored), [{ value: 7 }])
      for (const signal of ["SIGKILL", "SIGQUIT"] as const) {
        yield* shard!.control.stop(signal)
        assert.strictEqual(shard!.pid, -1)
        yield* shard!.control.start
        assert.deepStrictEqual(yield* onShard(shard!, stored), [{ value: 7 }])
      }
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("takes the next free port", () =>
    Effect.gen(function* () {
      const taken = yield* occupied
      const dataDir = yield* temporary
      yield* copyTemplate(dataDir, ["shard-1"])
      const [shard] = yield* start({ dataDir, shards: 1, port: taken })
      assert.isAbove(shard!.port, taken)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("stale pid files and a half-made folder don't hinder", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const dataDir = yield* temporary
      yield* copyTemplate(dataDir, ["kept"])
      yield* Effect.scoped(Effect.flatMap(start({ dataDir, shards: ["kept"], port }), ([s]) => onShard(s!, store)))
      // Our own pid: alive, but no PostgreSQL.
      yield* fs.writeFileString(`${dataDir}/kept/postmaster.pid`, `${process.pid}\n${dataDir}/kept\n1\n`)
      yield* fs.writeFileString(`${dataDir}/postgres.owner`, `${process.pid} 1\n`)
      yield* fs.makeDirectory(`${dataDir}/half`)
      yield* fs.writeFileString(`${dataDir}/half/PG_VERSION`, "18\n")
      yield* fs.writeFileString(`${dataDir}/half.initialising`, "")
      const [kept, half] = yield* start({ dataDir, shards: ["kept", "half"], port })
      assert.deepStrictEqual(yield* onShard(kept!, stored), [{ value: 7 }])
      yield* onShard(half!, store)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live("ends with a parent that is killed, and refuses a folder whose parent lives", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      yield* copyTemplate(dataDir, ["shard-1", "shard-2"])
      const first = yield* hold(dataDir)
      assert.isTrue("pids" in first.said, JSON.stringify(first.said))
      const pids = "pids" in first.said ? first.said.pids : []
      assert.strictEqual(pids.length, 3)

      const second = yield* hold(dataDir)
      assert.isTrue("failed" in second.said && second.said.failed === "FolderInUse", JSON.stringify(second.said))
      if ("message" in second.said) assert.include(second.said.message, String(first.parent.pid))
      for (const pid of pids) assert.isDefined(yield* inspect(pid))

      yield* killed(first.parent)
      // Started at once, while the reaper may still be at work.
      const shards = yield* start({ dataDir, shards: 2, port })
      assert.strictEqual(shards.length, 2)
      for (const pid of pids) {
        yield* until(
          `the end of ${pid}`,
          Effect.map(inspect(pid), (seen) => seen === undefined),
        )
      }
      yield* onShard(shards[0]!, store)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.platform !== "linux")("what a killed parent left without its reapers is ended first", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporary
      yield* copyTemplate(dataDir, ["shard-1", "shard-2"])
      const { parent, said } = yield* hold(dataDir)
      const pids = "pids" in said ? said.pids : []
      const reapers = reapersOf(parent.pid!)
      assert.deepStrictEqual([pids.length, reapers.length], [3, 3])
      for (const reaper of reapers) process.kill(reaper, "SIGKILL")
      yield* killed(parent)
      for (const pid of pids) assert.isDefined(yield* inspect(pid))

      const [shard] = yield* start({ dataDir, shards: 2, port })
      yield* Effect.scoped(Layer.build(NatsServer.layer({ dataDir: `${dataDir}/nats`, port })))
      for (const pid of pids) assert.isUndefined(yield* inspect(pid))
      yield* onShard(shard!, store)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.getuid?.() !== 0)("root: data below a private folder", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const parent = yield* temporary
      yield* fs.chmod(parent, 0o700)
      const dataDir = `${parent}/data`
      const options = { dataDir, shards: 1, port }
      // The data lies outside of the temporary folder.
      yield* Effect.addFinalizer(() =>
        Effect.ignore(
          Effect.flatMap(fs.realPath(`${dataDir}/shard-1`), (folder) => fs.remove(folder, { recursive: true })),
        ),
      )
      yield* Effect.scoped(
        Effect.gen(function* () {
          const [shard] = yield* start(options)
          yield* onShard(shard!, store)
          assert.strictEqual(yield* fs.realPath(`${dataDir}/shard-1`), shard!.dataDir)
        }),
      )
      const [shard] = yield* start(options)
      assert.deepStrictEqual(yield* onShard(shard!, stored), [{ value: 7 }])
      assert.strictEqual((yield* fs.stat(parent)).mode & 0o777, 0o700)
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.getuid?.() !== 0)("root: what took the place of data that is gone is not touched", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const parent = yield* temporary
      yield* fs.chmod(parent, 0o700)
      const victim = yield* fs.makeTempDirectoryScoped({ prefix: "objectlog-test-" })
      const gone = yield* fs.makeTempDirectoryScoped({ directory: "/var/tmp", prefix: "objectlog-data-" })
      yield* fs.makeDirectory(`${parent}/data`)
      yield* fs.symlink(gone, `${parent}/data/shard-1`)
      for (const owner of [12_345, yield* Effect.map(serverAccount, (account) => account!.uid)]) {
        yield* fs.remove(gone, { recursive: true })
        yield* fs.symlink(victim, gone)
        yield* Effect.sync(() => lchownSync(gone, owner, owner))
        const error = yield* Effect.flip(start({ dataDir: `${parent}/data`, shards: 1, port }))
        assert.include(error.message, gone)
        assert.strictEqual(Option.getOrUndefined((yield* fs.stat(victim)).uid), 0)
      }
    }).pipe(Effect.provide(NodeServices.layer)),
  )

  it.live.skipIf(process.getuid?.() !== 0)("root: doesn't start on an empty folder beside data it can't use", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const parent = yield* temporary
      yield* fs.chmod(parent, 0o700)
      yield* fs.makeDirectory(`${parent}/data/shard-1`, { recursive: true })
      const error = yield* Effect.flip(start({ dataDir: `${parent}/data`, shards: 1, port }))
      assert.include(error.message, `${parent}/data/shard-1`)
    }).pipe(Effect.provide(NodeServices.layer)),
  )
})
