/**
 * `npm run bench`: starts everything on loopback, measures one worker on two shards, checks that every entry is there
 * once, and prints a table. Options: `--appends N --objects N --size N --rate N --seconds N`.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { PgClient } from "@effect/sql-pg"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Console, Deferred, Effect, Layer, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { type ChildProcess, spawn } from "node:child_process"
import { readFile } from "node:fs/promises"
import { cpus } from "node:os"
import { parseArgs } from "node:util"
import { NatsServer } from "../src/embedded/NatsServer.ts"
import { PostgresServers } from "../src/embedded/PostgresServers.ts"
import { TestNats, TestPostgres } from "../test/embedded/testServers.ts"

const { values: options } = parseArgs({
  options: {
    appends: { type: "string", default: "200000" },
    objects: { type: "string", default: "1000" },
    size: { type: "string", default: "100" },
    rate: { type: "string", default: "100" },
    seconds: { type: "string", default: "20" },
    read: { type: "string", default: "1000000" },
  },
})
const appends = Number(options.appends)
const objects = Number(options.objects)
const size = Number(options.size)
const rate = Number(options.rate)
const seconds = Number(options.seconds)
const readEntries = Number(options.read)

/** Starts `objectlog worker` on the servers; resolves when it says that it is ready, and stops it with the scope. */
const startWorker = Effect.gen(function* () {
  const nats = yield* NatsServer
  const { shards } = yield* PostgresServers
  const env = {
    ...process.env,
    NATS_URL: nats.url,
    POSTGRES_IPS: shards
      .map(
        (s) =>
          `${s.name}=postgres://${s.user}:${encodeURIComponent(Redacted.value(s.password))}@${s.host}:${s.port}/${s.database}`,
      )
      .join(","),
  }
  return yield* Effect.acquireRelease(
    Effect.callback<ChildProcess>((resume) => {
      const child = spawn(
        process.execPath,
        ["--max-semi-space-size=8", "--max-old-space-size=512", "src/main.ts", "worker"],
        { env, stdio: ["ignore", "pipe", "inherit"] },
      )
      child.stdout.once("data", () => resume(Effect.succeed(child)))
      child.once("exit", (code) => resume(Effect.die(new Error(`worker exited with ${code}`))))
    }),
    (child) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGTERM")
      }).pipe(Effect.timeoutOption("15 seconds")),
  )
})

/** Resident memory in MiB, from the kernel: now, or at its highest. */
const residentMemory = (pid: number, field: "VmRSS" | "VmHWM") =>
  Effect.promise(async () => {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "")
    return Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)?.[1] ?? Number.NaN) / 1024
  })

/** Publishes with a window of unconfirmed messages, so that the broker sets the pace. */
const publishAll = (nc: NatsConnection, count: number, body: (i: number) => string) =>
  Effect.promise(async () => {
    for (let i = 0; i < count; i++) {
      nc.publish("logs", body(i))
      if (i % 2_000 === 1_999) await nc.flush()
    }
    await nc.flush()
  })

/** Completes when `count` events of that kind have arrived. */
const events = Effect.fnUntraced(function* (nc: NatsConnection, count: number, each?: (body: string) => void) {
  const done = yield* Deferred.make<number>()
  let seen = 0
  const subscription = nc.subscribe("response", {
    callback: (_, message) => {
      each?.(message.string())
      if (++seen === count) {
        subscription.unsubscribe()
        Deferred.doneUnsafe(done, Effect.succeed(performance.now()))
      }
    },
  })
  yield* Effect.promise(() => nc.flush())
  return Deferred.await(done)
})

const quantile = (sorted: ReadonlyArray<number>, q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!

/** Counts entries, and what a correct log can't have. */
const check = Effect.gen(function* () {
  const { shards } = yield* PostgresServers
  let entries = 0
  let wrong = 0
  for (const shard of shards) {
    const [row] = yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      return yield* sql<{ entries: bigint; wrong: bigint }>`
        select (select count(*) from log_entries) as entries, (select count(*) from objects o where entries <>
          (select count(distinct position) from log_entries e where e.object_id = o.id and position between 1 and o.entries)) as wrong`
    }).pipe(
      Effect.provide(
        PgClient.layer({
          host: shard.host,
          port: shard.port,
          username: shard.user,
          password: shard.password,
          database: shard.database,
        }),
      ),
    )
    entries += Number(row!.entries)
    wrong += Number(row!.wrong)
  }
  return { entries, wrong }
})

const program = Effect.gen(function* () {
  const nats = yield* NatsServer
  const nc = yield* Effect.acquireRelease(
    Effect.promise(() => connect({ servers: nats.url })),
    (connection) => Effect.promise(() => connection.close()),
  )
  const rows: Array<readonly [string, string]> = []
  const text = "x".repeat(size)

  // A first worker creates tables, streams and consumers.
  yield* Effect.scoped(startWorker)

  yield* publishAll(nc, appends, (i) => `{"id":${(i * 7919) % objects},"log":"${text}"}`)
  const drained = yield* events(nc, appends)
  yield* Effect.scoped(
    Effect.gen(function* () {
      const started = performance.now()
      const worker = yield* startWorker
      const ready = performance.now()
      const took = (yield* drained) - ready
      rows.push(["worker start to ready", `${Math.round(ready - started)} ms`])
      rows.push([
        `drain of ${appends} appends, ${size} B, ${objects} objects`,
        `${Math.round((appends / took) * 1000)} appends/s`,
      ])
      rows.push([
        "worker RSS, highest under that load",
        `${Math.round(yield* residentMemory(worker.pid!, "VmHWM"))} MiB`,
      ])
      const found = yield* check
      rows.push(["entries found / objects with a gap", `${found.entries} of ${appends} / ${found.wrong}`])

      const delays: Array<number> = []
      const sent = new Map<string, number>()
      const total = rate * seconds
      const answered = yield* events(nc, total, (body) => {
        const id = /"request_id":"(\d+)"/.exec(body)?.[1]
        if (id !== undefined) delays.push(performance.now() - sent.get(id)!)
      })
      for (let i = 0; i < total; i++) {
        sent.set(String(i), performance.now())
        nc.publish("logs", `{"id":${i % objects},"log":"${text}","request_id":"${i}"}`)
        yield* Effect.sleep(1000 / rate)
      }
      yield* answered
      delays.sort((a, b) => a - b)
      rows.push([
        `append to event at ${rate}/s, p50 / p99`,
        `${quantile(delays, 0.5).toFixed(1)} / ${quantile(delays, 0.99).toFixed(1)} ms`,
      ])
    }),
  )

  if (readEntries > 0) {
    const id = objects + 1
    yield* publishAll(nc, readEntries, () => `{"id":${id},"log":"${text}"}`)
    const stored = yield* events(nc, readEntries)
    yield* Effect.scoped(Effect.andThen(startWorker, stored))
    yield* Effect.scoped(
      Effect.gen(function* () {
        const worker = yield* startWorker
        let entries = 0
        let pages = 0
        const last = yield* Deferred.make<void>()
        const subscription = nc.subscribe("_INBOX.bench.read", {
          callback: (_, message) => {
            const page = JSON.parse(message.string()) as { entries: ReadonlyArray<unknown>; last: boolean }
            entries += page.entries.length
            pages++
            if (page.last) Deferred.doneUnsafe(last, Effect.void)
          },
        })
        yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
        const started = performance.now()
        nc.publish("query", `{"id":${id},"reply_to":"_INBOX.bench.read"}`)
        yield* Deferred.await(last)
        const took = performance.now() - started
        rows.push([
          `full read of ${readEntries} entries`,
          `${Math.round((entries / took) * 1000)} entries/s, ${entries} entries in ${pages} pages`,
        ])
        rows.push(["worker RSS, highest during it", `${Math.round(yield* residentMemory(worker.pid!, "VmHWM"))} MiB`])
      }),
    )
  }

  yield* Console.log(
    `\n${cpus().length} × ${cpus()[0]!.model}, Node ${process.version}, nats-server ${nc.info!.version}, PostgreSQL 18, fsync on\n`,
  )
  yield* Console.log("| what | measured |\n|---|---|")
  for (const [what, measured] of rows) yield* Console.log(`| ${what} | ${measured} |`)
}).pipe(Effect.scoped, Effect.provide(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

NodeRuntime.runMain(program.pipe(Effect.provide(NodeServices.layer)))
