/** A whole service for tests: real servers, workers in this process, and a client that knows only the contract. */
import { assert } from "@effect/vitest"
import { headers, type NatsConnection } from "@nats-io/transport-node"
import { Context, Effect, Layer, Queue, Redacted, type Scope } from "effect"
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
import { connectTo } from "../../bench/servers/connectTo.ts"

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

/** An event as a client sees it: parsed, and its text where digits matter. */
export interface Event {
  readonly subject: string
  readonly text: string
  readonly body: {
    readonly type: "append" | "query"
    readonly status: "ok" | "error"
    readonly position?: number
    readonly seq?: number
    readonly timestamp?: number
    readonly duplicate?: boolean
    readonly request_id?: string
    readonly error?: { readonly code: string; readonly message: string }
    readonly page?: number
    readonly last?: boolean
    readonly next?: string
    readonly entries?: ReadonlyArray<{
      readonly position: number
      readonly seq: number
      readonly timestamp: number
      readonly log: string
    }>
  }
}

/** A foreign client: plain core publishes in, a plain core subscription on `response` out. */
export class ForeignClient extends Context.Service<
  ForeignClient,
  {
    readonly connection: NatsConnection
    readonly publish: (subject: string, body: string | Uint8Array, hdrs?: Record<string, string>) => Effect.Effect<void>
    /** The next event on `response`. */
    readonly next: Effect.Effect<Event>
    readonly append: (body: string, hdrs?: Record<string, string>) => Effect.Effect<Event>
    /** All pages of one read, in the order of arrival. */
    readonly read: (body: string) => Effect.Effect<ReadonlyArray<Event>>
    readonly subscribe: (subject: string) => Effect.Effect<Queue.Dequeue<Event>, never, Scope.Scope>
  }
>()("test/service/ForeignClient") {
  static readonly layer = Layer.effect(
    ForeignClient,
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url, { maxReconnectAttempts: -1 })),
        (nc) => Effect.promise(() => nc.close()),
      )
      const subscribe = Effect.fnUntraced(function* (subject: string) {
        const queue = yield* Queue.unbounded<Event>()
        const subscription = connection.subscribe(subject, {
          callback: (_, message) => {
            const text = message.string()
            Queue.offerUnsafe(queue, { subject: message.subject, text, body: JSON.parse(text) as Event["body"] })
          },
        })
        yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
        yield* Effect.promise(() => connection.flush())
        return queue
      })
      const events = yield* subscribe("response")
      const publish = (subject: string, body: string | Uint8Array, hdrs: Record<string, string> = {}) =>
        Effect.sync(() => {
          const all = headers()
          for (const [name, value] of Object.entries(hdrs)) all.set(name, value)
          connection.publish(subject, body, Object.keys(hdrs).length > 0 ? { headers: all } : {})
        })
      const next = Queue.take(events)
      return ForeignClient.of({
        connection,
        publish,
        next,
        subscribe,
        append: (body, hdrs) => Effect.andThen(publish("logs", body, hdrs), next),
        read: Effect.fnUntraced(function* (body) {
          yield* publish("query", body)
          const pages: Array<Event> = []
          do pages.push(yield* next)
          while (pages.at(-1)!.body.last === false)
          return pages
        }),
      })
    }),
  )
}

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

/** Fails the test when it takes longer. */
export const within =
  (what: string, millis: number, state: () => string = () => "") =>
  <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.timeoutOrElse(self, {
      duration: millis,
      orElse: () => Effect.die(new Error(`expected within ${millis} ms: ${what}; ${state()}`)),
    })

/** The answers to the requests whose id has a prefix, as a core subscription to `response` sees them. */
export interface Answers {
  readonly byRequest: ReadonlyMap<string, ReadonlyArray<Event["body"]>>
  /** Waits until so many different requests are answered. */
  readonly until: (count: number, withinMillis: number) => Effect.Effect<void>
}

/** Collects answers from now on. */
export const collectAnswers = Effect.fnUntraced(function* (
  connection: NatsConnection,
  prefix: string,
): Effect.fn.Return<Answers, never, Scope.Scope> {
  const byRequest = new Map<string, Array<Event["body"]>>()
  const waiting = new Set<() => void>()
  const subscription = connection.subscribe("response", {
    callback: (_, message) => {
      const body = JSON.parse(message.string()) as Event["body"]
      if (body.request_id?.startsWith(prefix) !== true) return
      const known = byRequest.get(body.request_id)
      if (known !== undefined) return void known.push(body)
      byRequest.set(body.request_id, [body])
      for (const check of waiting) check()
    },
  })
  yield* Effect.addFinalizer(() => Effect.sync(() => subscription.unsubscribe()))
  yield* Effect.promise(() => connection.flush())
  return {
    byRequest,
    until: (count, withinMillis) =>
      Effect.callback<void>((resume) => {
        const check = () => {
          if (byRequest.size < count) return
          waiting.delete(check)
          resume(Effect.void)
        }
        waiting.add(check)
        check()
        return Effect.sync(() => waiting.delete(check))
      }).pipe(within(`${count} answers to ${prefix}`, withinMillis, () => `got ${byRequest.size}`)),
  }
})

/** An append with the text as its request id, below the prefix. */
export const appendBody = (id: number, prefix: string, log: string): string =>
  JSON.stringify({ id, log, request_id: `${prefix}${log}` })

/** Publishes core messages in sequence. */
export const publishInSequence = (connection: NatsConnection, bodies: Iterable<string>): Effect.Effect<void> =>
  Effect.promise(async () => {
    let unflushed = 0
    for (const body of bodies) {
      connection.publish("logs", body)
      if (++unflushed % 500 === 0) await connection.flush()
    }
    await connection.flush()
  })

/** Ids from `first` on that live on the shard of this name. */
export const idsOn = Effect.fnUntraced(function* (shard: string, first: number, count: number) {
  const { shards } = yield* PostgresServers
  const ring = yield* HashRing.make(shards.map(({ name }) => ({ name, weight: 1 })))
  const ids: Array<number> = []
  if (ring.slotsOf(shard) === 0) throw new RangeError(`there is no shard ${shard}`)
  for (let id = first; ids.length < count; id++) if (ring.shardOf(BigInt(id)) === shard) ids.push(id)
  return ids
})

/** All entries of an object, read through the service. */
export const readLog = (connection: NatsConnection, id: number) =>
  Effect.callback<ReadonlyArray<{ readonly position: number; readonly seq: number; readonly log: string }>>(
    (resume) => {
      const inbox = `_INBOX.test.${id}.${Math.random().toString(36).slice(2)}`
      const pages: Array<Event["body"]> = []
      const subscription = connection.subscribe(inbox, {
        callback: (_, message) => {
          pages.push(JSON.parse(message.string()) as Event["body"])
          if (pages.at(-1)!.last === false) return
          subscription.unsubscribe()
          resume(Effect.sync(() => pages.flatMap((page) => page.entries ?? [])))
        },
      })
      connection.publish("query", JSON.stringify({ id, reply_to: inbox }))
      return Effect.sync(() => subscription.unsubscribe())
    },
  ).pipe(within(`object ${id} is read`, 15_000))

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
