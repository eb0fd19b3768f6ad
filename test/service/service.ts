/** A whole service for tests: real servers, workers in this process. */
import { assert } from "@effect/vitest"
import type { NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Redacted, type Scope } from "effect"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { layerMemory as metricsMemory } from "../../src/observe/Metrics.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { placementOf } from "../../src/placement/guard.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { ShardPoolLive } from "../../src/shard/ShardPoolLive.ts"
import { appendBody } from "../foreign/ForeignClient.ts"
import { readLog } from "../foreign/read.ts"
import { within } from "../foreign/within.ts"

/** The layers of one worker on the servers of the test. */
export const workerLayers = Layer.unwrap(
  Effect.gen(function* () {
    const nats = yield* NatsServer
    const { shards } = yield* PostgresServers
    const specs = shards.map(({ name }) => ({ name, weight: 1 }))
    const ring = yield* HashRing.make(specs)
    return Layer.mergeAll(
      NatsLive({
        servers: nats.url,
        logsTopic: "logs",
        queryTopic: "query",
        responseTopic: "response",
        deadTopic: "dead",
        replicas: 1,
        connectionName: "test worker",
      }),
      HashRingLive(specs),
      ShardPoolLive({
        shards: shards.map((shard) => ({ ...shard, weight: 1 })),
        autoMigrate: true,
        placement: placementOf(ring.shards),
      }),
      metricsMemory,
    )
  }),
)

/** Starts a worker in the scope; it is ready when this returns. */
export const startWorker: Effect.Effect<void, unknown, Scope.Scope | NatsServer | PostgresServers> = Effect.gen(
  function* () {
    const context = yield* Layer.build(Layer.fresh(workerLayers))
    yield* runWorker({ responseTopic: "response", debug: false }).pipe(
      Effect.provideContext(context),
      Effect.forkScoped,
    )
  },
)

/** An `objectlog worker` in a process of its own. */
export interface WorkerProcess {
  readonly pid: number
  /** Where `/metrics` and the others are. */
  readonly url: string
  /** Sends a signal and waits for the end, for so long at most; the exit code, or the signal that ended it. */
  readonly stop: (signal: NodeJS.Signals, withinMillis: number) => Effect.Effect<number | NodeJS.Signals>
  /** What it has written so far, on both channels. */
  readonly output: () => string
}

/** Of the test runner's environment: little, as it sets MODE, for one. */
export const inherited = Object.fromEntries(
  ["PATH", "HOME", "NODE_COMPILE_CACHE", "TZ"].flatMap((name) =>
    process.env[name] === undefined ? [] : [[name, process.env[name]]],
  ),
)

const program = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

/** The environment of a worker on the servers of the test. */
export const workerEnvironment = Effect.gen(function* () {
  const nats = yield* NatsServer
  const { shards } = yield* PostgresServers
  const addresses = shards.map(
    ({ name, host, port, user, password, database }) =>
      `${name}=postgres://${user}:${encodeURIComponent(Redacted.value(password))}@${host}:${port}/${database}`,
  )
  return { NATS_URL: nats.url, POSTGRES_IPS: addresses.join(",") }
})

/** One that may not be ready, or never be. */
interface StartingWorker extends WorkerProcess {
  readonly ready: Effect.Effect<void>
  /** Its exit code, or the signal that ended it. */
  readonly ended: Effect.Effect<number | NodeJS.Signals>
}

/** Starts `objectlog worker`, which is gone when the scope is closed; does not wait until it is ready. */
export const spawnWorker = Effect.fnUntraced(function* (
  settings: Readonly<Record<string, string>>,
): Effect.fn.Return<StartingWorker, never, Scope.Scope> {
  let output = ""
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, [program, "worker"], {
        env: { ...inherited, ...settings },
        stdio: ["ignore", "pipe", "pipe"],
      }),
    ),
    (process) =>
      Effect.callback<void>((resume) => {
        if (process.exitCode !== null || process.signalCode !== null) return resume(Effect.void)
        process.once("exit", () => resume(Effect.void))
        process.kill("SIGKILL")
      }),
  )
  const ended = Effect.callback<number | NodeJS.Signals>((resume) => {
    const end = () => resume(Effect.succeed(child.exitCode ?? child.signalCode!))
    if (child.exitCode !== null || child.signalCode !== null) return end()
    child.once("exit", end)
    return Effect.sync(() => child.off("exit", end))
  })
  let isReady: () => void = () => undefined
  const listen = (chunk: Buffer) => {
    output += chunk.toString()
    if (output.includes("objectlog worker ready")) isReady()
  }
  child.stdout.on("data", listen)
  child.stderr.on("data", listen)
  const ready = Effect.callback<void>((resume) => {
    isReady = () => resume(Effect.void)
    if (output.includes("objectlog worker ready")) isReady()
  })
  return {
    pid: child.pid!,
    get url() {
      return `http://127.0.0.1:${/metrics on 127\.0\.0\.1:(\d+)/.exec(output)![1]}`
    },
    ready: ready.pipe(
      Effect.raceFirst(
        Effect.flatMap(ended, (end) => Effect.die(new Error(`the worker ended with ${end}: ${output}`))),
      ),
      within("the worker is ready", 20_000, () => output),
    ),
    stop: (signal, withinMillis) =>
      Effect.suspend(() => {
        child.kill(signal)
        return ended
      }).pipe(within(`the worker ends after ${signal}`, withinMillis, () => output)),
    ended,
    output: () => output,
  }
})

/** Starts `objectlog worker` on the servers of the test; it is ready when this returns, and gone when the scope is closed. */
export const startWorkerWith = (
  settings: Readonly<Record<string, string>>,
): Effect.Effect<WorkerProcess, never, Scope.Scope | NatsServer | PostgresServers> =>
  Effect.gen(function* () {
    const worker = yield* spawnWorker({ ...(yield* workerEnvironment), ...settings })
    yield* worker.ready
    return worker
  })

export const startWorkerProcess = startWorkerWith({})

/** Ids from `first` on that live on the shard of this name. */
export const idsOn = Effect.fnUntraced(function* (shard: string, first: number, count: number) {
  const { shards } = yield* PostgresServers
  const ring = yield* HashRing.make(shards.map(({ name }) => ({ name, weight: 1 })))
  const ids: Array<number> = []
  if (ring.slotsOf(shard) === 0) throw new RangeError(`there is no shard ${shard}`)
  for (let id = first; ids.length < count; id++) if (ring.shardOf(BigInt(id)) === shard) ids.push(id)
  return ids
})

/** Every object has exactly these texts in this order, at the positions 1 … n, and no two entries are one message. */
export const assertLogs = Effect.fnUntraced(function* (
  connection: NatsConnection,
  expected: ReadonlyMap<number, ReadonlyArray<string>>,
) {
  yield* Effect.forEach(
    expected,
    ([id, logs]) =>
      Effect.map(readLog(connection, id), (entries) => {
        assert.deepStrictEqual(
          entries.map((entry) => entry.log),
          logs,
          `the log of object ${id}`,
        )
        assert.deepStrictEqual(
          entries.map((entry) => entry.position).sort((a, b) => a - b),
          logs.map((_, i) => i + 1),
          `the positions of object ${id}`,
        )
        assert.strictEqual(new Set(entries.map((entry) => entry.seq)).size, logs.length)
      }),
    { concurrency: 16, discard: true },
  )
})

/** `count` appends in sequence, over objects in turn: bodies, and what the logs must be. */
export const planAppends = (options: {
  readonly prefix: string
  readonly count: number
  readonly objects: ReadonlyArray<number>
}) => {
  const expected = new Map<number, Array<string>>(options.objects.map((id) => [id, []]))
  const bodies: Array<string> = []
  for (let i = 0; i < options.count; i++) {
    const id = options.objects[i % options.objects.length]!
    expected.get(id)!.push(String(i))
    bodies.push(appendBody(id, options.prefix, String(i)))
  }
  return { bodies, expected }
}
