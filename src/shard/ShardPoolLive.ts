/**
 * The logs in PostgreSQL: for each shard a pool of connections for reads, and those of its appends (`transaction.ts`).
 *
 * A shard serves only after it was verified: reachable, of a supported version, migrated, and recorded as this shard of
 * this placement (`guard.ts`). One that is down at the start, while others are verified, does not stop the start: it is
 * verified before its first use (`verify.ts`).
 */
import { PgClient } from "@effect/sql-pg"
import { Duration, Effect, Fiber, Layer, type Redacted, Semaphore } from "effect"
import { Reactivity } from "effect/reactivity"
import type { PlacementMismatch, PlacementRecord } from "../placement/guard.ts"
import { makeAppendEntries } from "./appendEntries.ts"
import type { PostgresTooOld, SchemaOutdated } from "./migrations.ts"
import { readFirstPages, readPage } from "./readPage.ts"
import { type ShardHealth, ShardPool, ShardUnavailable } from "./ShardPool.ts"
import { classify, classifyRead, unavailable } from "./transient.ts"
import { type Shard, verifyAll, verifyLater } from "./verify.ts"

/** How to reach one shard. */
export interface ShardSettings {
  readonly name: string
  readonly weight: number
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted
  readonly database: string
  /** Wins over the fields; may carry TLS options. */
  readonly url?: Redacted.Redacted | undefined
  /** What messages call it, without a secret. Default: `host:port`. */
  readonly address?: string | undefined
}

export interface ShardPoolSettings {
  /** In the order of the placement. */
  readonly shards: ReadonlyArray<ShardSettings>
  /** Create and migrate tables; otherwise outdated ones stop the start. */
  readonly autoMigrate: boolean
  readonly placement: PlacementRecord
}

/** Connections for each shard that are in use at the same time: one by the lane of appends, the others by reads. */
const maxConnections = 8

/** How long to wait for a free connection. */
const acquireTimeout = Duration.seconds(10)

/** Longer than `statement_timeout`: only a server that does not answer at all gets here. */
const operationTimeout = Duration.seconds(45)

const healthTimeout = Duration.seconds(2)

/** Session settings, sent when connecting. */
const startupParameters = {
  // A worker that died must not keep the locks of its objects, and nobody waits long for them.
  lock_timeout: "5s",
  idle_in_transaction_session_timeout: "10s",
  statement_timeout: "30s",
  tcp_keepalives_idle: "10",
  tcp_keepalives_interval: "5",
  tcp_keepalives_count: "3",
  // Every statement is a walk along an index. A plan that was made while the tables were empty would scan or sort them
  // until the next ANALYZE; with these there is no such plan, and none has to be made again for each batch.
  plan_cache_mode: "force_generic_plan",
  enable_seqscan: "off",
  enable_bitmapscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  enable_sort: "off",
  jit: "off",
}

/** The live ShardPool. It starts when the guard allows it, and waits while it cannot know. */
export const ShardPoolLive = (
  settings: ShardPoolSettings,
): Layer.Layer<ShardPool, PlacementMismatch | PostgresTooOld | SchemaOutdated> =>
  Layer.effect(ShardPool, make(settings)).pipe(Layer.provide(Reactivity.layer))

const make = Effect.fnUntraced(function* (settings: ShardPoolSettings) {
  const shards = yield* Effect.forEach(settings.shards, connect)
  const state = yield* verifyAll(shards, settings)

  /** Runs an operation of a shard that is verified, on a connection that is free in time. */
  const use = <A, E>(
    index: number,
    operation: string,
    run: (shard: Shard) => Effect.Effect<A, E>,
  ): Effect.Effect<A, E | ShardUnavailable> => {
    const shard = shards[index]!
    const guarded = withConnection(shard, operation, run(shard))
    return shard.verified ? guarded : Effect.andThen(verifyLater(state, shard), guarded)
  }

  const ping = (index: number): Effect.Effect<ShardHealth> =>
    use(index, "health", ({ sql }) =>
      Effect.mapError(sql`select 1`, (error) => unavailable(shards[index]!.name, "health", error)),
    ).pipe(
      Effect.match({
        onFailure: ({ reason, shard }): ShardHealth => ({ shard, ok: false, reason }),
        onSuccess: (): ShardHealth => ({ shard: shards[index]!.name, ok: true, reason: undefined }),
      }),
    )

  /** In a fiber of its own: to interrupt a statement takes seconds when the server does not answer. */
  const healthOf = (index: number): Effect.Effect<ShardHealth> =>
    Effect.flatMap(Effect.forkDetach(ping(index)), (fiber) =>
      Fiber.join(fiber).pipe(
        Effect.timeoutOrElse({
          duration: healthTimeout,
          orElse: () => Effect.succeed<ShardHealth>({ shard: shards[index]!.name, ok: false, reason: "timeout" }),
        }),
      ),
    )

  return ShardPool.of({
    append: (index, batch) =>
      use(index, "append", ({ append, name }) =>
        Effect.mapError(append(batch), (error) => classify(name, "append", error)),
      ),
    readFirstPages: (index, query) =>
      use(index, "read", ({ name, sql }) =>
        Effect.mapError(readFirstPages(sql, query), (error) => classifyRead(name, error)),
      ),
    readPage: (index, query) =>
      use(index, "read", ({ name, sql }) =>
        Effect.mapError(readPage(sql, query), (error) => classifyRead(name, error)),
      ),
    health: Effect.suspend(() => Effect.forEach(shards.keys(), healthOf, { concurrency: "unbounded" })),
    usage: () => shards.map(({ inUse, name, waiting }) => ({ shard: name, connectionsInUse: inUse, waiting })),
  })
})

/** The connections for a shard: a pool, and those that pipeline appends. Nothing is connected yet. */
const connect = Effect.fnUntraced(function* (settings: ShardSettings) {
  const { database, host, name, password, port, url, user } = settings
  const reactivity = yield* Reactivity.Reactivity
  const options = {
    ...(url === undefined ? { host, port, username: user, password, database } : { url }),
    applicationName: "objectlog",
    connectTimeout: "5 seconds",
    keepAlive: "10 seconds",
    startupParameters,
    spanAttributes: {
      "objectlog.shard": name,
      "db.namespace": database,
      "server.address": host,
      "server.port": port,
    },
  } satisfies PgClient.PgClientConfig
  // A pool connects when it is first used, so making one cannot fail.
  const sql = yield* Effect.orDie(PgClient.make({ ...options, maxConnections }))
  const append = yield* makeAppendEntries(
    Effect.provideService(PgClient.makeClient({ ...options, multiplex: true }), Reactivity.Reactivity, reactivity),
  )
  const shard: Shard = {
    name,
    address: settings.address ?? `${host}:${port}`,
    sql,
    append,
    permits: Semaphore.makeUnsafe(maxConnections),
    inUse: 0,
    waiting: 0,
    verifying: Semaphore.makeUnsafe(1),
    verified: false,
    record: "unreachable",
  }
  return shard
})

/**
 * Waits for a permit and runs. The pool itself would wait for a free connection for ever; there are as many permits as
 * connections, so whoever has one does not wait for long.
 */
const withConnection = <A, E>(
  shard: Shard,
  operation: string,
  run: Effect.Effect<A, E>,
): Effect.Effect<A, E | ShardUnavailable> =>
  Effect.uninterruptibleMask((restore) => {
    shard.waiting++
    return restore(shard.permits.take(1)).pipe(
      Effect.timeoutOrElse({
        duration: acquireTimeout,
        orElse: () => Effect.fail(tooLate(shard, operation, "pool")),
      }),
      Effect.ensuring(Effect.sync(() => shard.waiting--)),
      Effect.andThen(
        Effect.suspend(() => {
          shard.inUse++
          return Effect.ensuring(
            restore(run),
            Effect.suspend(() => {
              shard.inUse--
              return shard.permits.release(1)
            }),
          )
        }),
      ),
    )
  }).pipe(
    Effect.timeoutOrElse({
      duration: operationTimeout,
      orElse: () => Effect.fail(tooLate(shard, operation, "timeout")),
    }),
  )

const tooLate = (shard: Shard, operation: string, reason: "pool" | "timeout"): ShardUnavailable =>
  new ShardUnavailable({
    shard: shard.name,
    operation,
    reason,
    cause: new Error(reason === "pool" ? "no connection was free in time" : "the server did not answer in time"),
  })
