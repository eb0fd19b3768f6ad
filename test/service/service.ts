/** A whole service for tests: real servers, workers in this process, and a client that knows only the contract. */
import { connect, headers, type NatsConnection } from "@nats-io/transport-node"
import { Context, Effect, Layer, Queue, type Scope } from "effect"
import { NatsLive } from "../../src/broker/NatsLive.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { layerMemory as metricsMemory } from "../../src/observe/Metrics.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { placementOf } from "../../src/placement/guard.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { ShardPoolLive } from "../../src/shard/ShardPoolLive.ts"

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
        Effect.promise(() => connect({ servers: url, maxReconnectAttempts: -1 })),
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
