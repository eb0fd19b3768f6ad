/** The servers of a measurement, and the systems that are measured on them, each in processes of its own. */
import { jetstreamManager } from "@nats-io/jetstream"
import { connect, type NatsConnection } from "@nats-io/transport-node"
import { Context, Effect, Layer, Redacted } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { connectionOptions } from "../src/nats/connectionOptions.ts"
import { NatsServer } from "../src/embedded/NatsServer.ts"
import { type EmbeddedShard, PostgresServers } from "../src/embedded/PostgresServers.ts"
import { onShard } from "./servers/onShard.ts"
import { TestNats, TestPostgres } from "./servers/privateServers.ts"
import { cpuMicros } from "./Processes.ts"

/** `A` and `B` are the floors, see `floors/`. */
export type System = "objectlog" | "A" | "B"

/** CPU time by part, in microseconds. */
export interface CpuTime {
  readonly worker: number
  readonly nats: number
  readonly postgres: number
}

export class Rig extends Context.Service<
  Rig,
  {
    readonly connection: NatsConnection
    readonly shards: ReadonlyArray<EmbeddedShard>
    readonly natsPid: number
    /** With the credentials. */
    readonly natsUrl: string
  }
>()("bench/Rig") {
  /** A nats-server, two shards, all with the defaults of their makers, and a client; tables and streams are there. */
  static readonly layer = Layer.effect(
    Rig,
    Effect.gen(function* () {
      const nats = yield* NatsServer
      const { shards } = yield* PostgresServers
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connect(connectionOptions(nats.url, "bench"))),
        (nc) => Effect.promise(() => nc.close()),
      )
      // A first worker creates tables, streams and consumers.
      yield* Effect.scoped(startProcess("objectlog", nats.url, shards, 0))
      return { connection, shards, natsPid: nats.pid, natsUrl: nats.url }
    }),
  ).pipe(Layer.provide(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))
}

/** The longest measurement, which fills a table of ten million entries, takes a minute or two. */
export const measurementMax = "10 minutes"

/** Runs on servers of its own: nothing of an earlier measurement is left. Dies where that does not end. */
export const onFreshServers = <A, E, R>(measurement: Effect.Effect<A, E, R | Rig>) =>
  // The inner scope ends first, and with it the processes, while their servers are still there.
  Effect.scoped(measurement).pipe(
    Effect.timeoutOrElse({
      duration: measurementMax,
      orElse: () => Effect.die(new Error(`a measurement did not end within ${measurementMax}`)),
    }),
    Effect.provide(Layer.fresh(Rig.layer)),
  )

const shardUrl = (shard: EmbeddedShard) =>
  `postgres://${shard.user}:${encodeURIComponent(Redacted.value(shard.password))}@${shard.host}:${shard.port}/${shard.database}`

const path = (file: string) => fileURLToPath(new URL(file, import.meta.url))

const commands: Readonly<Record<System, readonly [command: string, ...argv: ReadonlyArray<string>]>> = {
  objectlog: [path("../src/objectlog.js"), "worker"],
  A: [process.execPath, path("floors/bareLoop.ts")],
  B: [process.execPath, path("floors/simpleWorker.ts")],
}

/** Starts a process, which has said that it is ready when this returns; it is gone with the scope. */
export const startProcess = (
  system: System,
  natsUrl: string,
  shards: ReadonlyArray<EmbeddedShard>,
  objects: number,
  variables: Readonly<Record<string, string>> = {},
) =>
  Effect.acquireRelease(
    Effect.callback<ChildProcess>((resume) => {
      const [command, ...argv] = commands[system]
      const child = spawn(command, argv, {
        env: {
          PATH: process.env["PATH"],
          HOME: process.env["HOME"],
          NATS_URL: natsUrl,
          POSTGRES_IPS: shards.map((shard) => `${shard.name}=${shardUrl(shard)}`).join(","),
          SHARDS: JSON.stringify(shards.map(shardUrl)),
          OBJECTS: String(objects),
          ...variables,
        },
        stdio: ["ignore", "pipe", "inherit"],
      })
      child.stdout.once("data", () => resume(Effect.succeed(child)))
      child.once("exit", (code) => resume(Effect.die(new Error(`${system} ended with ${code}`))))
    }),
    (child) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGTERM")
      }).pipe(
        Effect.timeoutOrElse({ duration: "15 seconds", orElse: () => Effect.sync(() => void child.kill("SIGKILL")) }),
      ),
  )

/**
 * Starts so many processes of a system; all are ready when this returns. `objects`: how many the floors prepare. `ready` is
 * when the first one was, which begins to work at once.
 */
export const startSystem = Effect.fnUntraced(function* (
  system: System,
  processes = 1,
  objects = 0,
  variables: Readonly<Record<string, string>> = {},
) {
  const { natsUrl, shards } = yield* Rig
  const started = yield* Effect.forEach(
    Array.from({ length: processes }, (_, i) => i),
    () =>
      Effect.map(startProcess(system, natsUrl, shards, objects, variables), (child) => ({
        child,
        ready: performance.now(),
      })),
    { concurrency: "unbounded" },
  )
  return {
    children: started.map(({ child }) => child),
    ready: Math.min(...started.map(({ ready }) => ready)),
  }
})

/** CPU time so far. */
export const cpuSoFar = Effect.fnUntraced(function* (workers: ReadonlyArray<ChildProcess>) {
  const { natsPid, shards } = yield* Rig
  const [worker, nats, postgres] = yield* Effect.all([
    cpuMicros(workers.map((child) => child.pid!)),
    cpuMicros([natsPid]),
    cpuMicros(shards.map((shard) => shard.pid)),
  ])
  return { worker, nats, postgres }
})

/** Entries on all shards, and objects whose positions are not 1 … n. */
export const stored = Effect.gen(function* () {
  const { shards } = yield* Rig
  let entries = 0
  let wrong = 0
  for (const shard of shards) {
    const [row] = yield* onShard(
      shard,
      (sql) => sql<{ entries: bigint; wrong: bigint }>`
        select (select count(*) from log_entries) as entries, (
          select count(*) from objects left join (
            select object_id, count(distinct position) as positions, max(position) as highest
            from log_entries group by object_id
          ) as found on object_id = id
          where entries <> coalesce(positions, 0) or entries <> coalesce(highest, 0)
        ) as wrong`,
    )
    entries += Number(row!.entries)
    wrong += Number(row!.wrong)
  }
  return { entries, wrong }
})

/** Rows that a floor has stored. */
export const storedByFloor = Effect.fnUntraced(function* (system: "A" | "B") {
  const { shards } = yield* Rig
  let rows = 0
  for (const shard of shards) {
    const [row] = yield* onShard(shard, (sql) =>
      system === "A"
        ? sql<{ rows: bigint }>`select count(*) as rows from floor.log_entries`
        : sql<{ rows: bigint }>`select count(*) as rows from floor.simple`,
    )
    rows += Number(row!.rows)
  }
  return rows
})

/** How many requests are stored in the intake and not acknowledged, as the broker says. */
export const unacknowledged = Effect.fnUntraced(function* () {
  const { connection } = yield* Rig
  return yield* Effect.promise(async () => {
    const jsm = await jetstreamManager(connection)
    const info = await jsm.consumers.info("objectlog_logs", "objectlog")
    return info.num_pending + info.num_ack_pending
  })
})
