/**
 * The logs in PostgreSQL. Appends and reads of a shard have sessions and places of their own, so that neither waits for the
 * other; health asks on sessions of both kinds, and waits for no place.
 *
 * A shard serves only after it was verified: reachable, suitable, migrated, and recorded as this shard of this placement
 * (`guard.ts`). One that is down at the start, while others are verified, does not stop the start: it is verified before
 * its first use, as is one whose sessions turned out to be useless (`verify.ts`).
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect, Layer, Semaphore } from "effect"
import { Reactivity } from "effect/reactivity"
import type { SqlError } from "effect/sql"
import type { PlacementMismatch, PlacementRecord } from "../placement/guard.ts"
import { type AppendEntries, makeAppendEntries } from "./appendEntries.ts"
import { addressOf, connectTo } from "./connectSession.ts"
import type { ShardSettings } from "../config/ConfigShards.ts"
import * as limits from "./limits.ts"
import { readFirstPages, readPage } from "./readPage.ts"
import { checkRights } from "./rights.ts"
import { type Sessions, sessionsOfShard } from "./sessions.ts"
import {
  type ShardHealth,
  rejectedAlone,
  ShardPool,
  ShardUnavailable,
  type ShardUse,
  shardUses,
  type Taken,
} from "./ShardPool.ts"
import type { ShardUnsuitable } from "./ShardUnsuitable.ts"
import { makeTransactions } from "./transaction.ts"
import { classify, classifyRead, unavailable } from "./transient.ts"
import { makeShard, type Shard, type Verification, verifyAll, verifyAllNow, verifyLater } from "./verify.ts"

export interface ShardPoolSettings {
  /** In the order of the placement. */
  readonly shards: ReadonlyArray<ShardSettings>
  /** Create and migrate tables; otherwise outdated ones stop the start. */
  readonly autoMigrate: boolean
  readonly placement: PlacementRecord
}

/** The live ShardPool. It starts when the guard allows it, and waits while it cannot know. */
export const ShardPoolLive = (
  settings: ShardPoolSettings,
): Layer.Layer<ShardPool, PlacementMismatch | ShardUnsuitable> =>
  Layer.effect(ShardPool, make(settings)).pipe(Layer.provide(Reactivity.layer))

/** Creates and migrates the tables of all shards, and records the placement; then workers need no more rights than to serve. */
export const migrateShards = (
  settings: Omit<ShardPoolSettings, "autoMigrate">,
): Effect.Effect<void, PlacementMismatch | ShardUnsuitable | ShardUnavailable> =>
  Effect.gen(function* () {
    const shards = yield* Effect.forEach(settings.shards, inspectable)
    yield* verifyAllNow({ shards, autoMigrate: true, placement: settings.placement })
  }).pipe(Effect.provide(Reactivity.layer))

const make = Effect.fnUntraced(function* (settings: ShardPoolSettings) {
  const scope = yield* Effect.scope
  const shards = yield* Effect.forEach(settings.shards, connect)
  const byName = new Map(shards.map((shard) => [shard.name, shard]))
  const verification: Verification = { ...settings, shards }
  yield* verifyAll(verification)

  /** Runs an operation of a shard that is verified, in its place among those of its kind. */
  const use = <A, E>(
    name: string,
    kind: ShardUse,
    operation: string,
    run: (shard: LiveShard) => Effect.Effect<A, E>,
  ): Effect.Effect<A, E | ShardUnavailable> =>
    Effect.suspend(() => {
      const shard = byName.get(name)
      if (shard === undefined) return Effect.die(new RangeError(`there is no shard ${name}`))
      const placed = inPlace(shard, kind, operation, run(shard))
      return (shard.verified ? placed : Effect.andThen(verifyLater(verification, shard, scope), placed)).pipe(
        inTime(shard, operation, limits.operationSeconds),
      )
    })

  const read = <A>(shard: string, run: (sql: PgClient) => Effect.Effect<A, SqlError.SqlError>) =>
    use(shard, "read", "read", ({ name, sessions }) =>
      Effect.mapError(
        sessions.read.use(({ sql }) => run(sql)),
        (error) => classifyRead(name, error),
      ),
    )

  /** Can it be appended to and read from, on the sessions that are there, or on new ones? */
  const ping = (shard: LiveShard): Effect.Effect<void, ShardUnavailable> =>
    verifyLater(verification, shard, scope).pipe(
      Effect.andThen(
        Effect.forEach(shardUses, (kind) =>
          shard.sessions[kind].look(({ isFit, sql }) => Effect.andThen(isFit, checkRights(sql))),
        ),
      ),
      Effect.catchTag("SqlError", (error) => Effect.fail(unavailable(shard.name, "health", error))),
      inTime(shard, "health", limits.healthSeconds.look),
    )

  const healthOf = (shard: LiveShard): Effect.Effect<ShardHealth> =>
    Effect.match(ping(shard), {
      onFailure: (error): ShardHealth => ({ shard: shard.name, ok: false, reason: shortly(error) }),
      onSuccess: (): ShardHealth => ({ shard: shard.name, ok: true, reason: undefined }),
    })

  return ShardPool.of({
    append: (shard, batch) =>
      use(shard, "append", "append", ({ append, name }) =>
        Effect.catchTag(
          Effect.mapError(append(batch), (error) => classify(name, "append", error)),
          "BatchRejected",
          (error) => rejectedAlone(batch.length, error),
        ),
      ),
    readFirstPages: (shard, query) => read(shard, (sql) => readFirstPages(sql, query)),
    readPage: (shard, query) => read(shard, (sql) => readPage(sql, query)),
    health: Effect.suspend(() => Effect.forEach(shards, healthOf, { concurrency: "unbounded" })),
    usage: () =>
      shards.map(({ name, places }) => ({ shard: name, append: taken(places.append), read: taken(places.read) })),
  })
})

/** An operation of each kind takes a place, so that no more run than there are sessions for. */
interface Places {
  readonly permits: Semaphore.Semaphore
  inUse: number
  waiting: number
}

interface LiveShard extends Shard {
  readonly sessions: Readonly<Record<ShardUse, Sessions>>
  readonly append: AppendEntries
  readonly places: Readonly<Record<ShardUse, Places>>
}

const taken = ({ inUse, waiting }: Places): Taken => ({ inUse, waiting })

const makePlaces = (count: number): Places => ({ permits: Semaphore.makeUnsafe(count), inUse: 0, waiting: 0 })

const inspectable = (settings: ShardSettings) =>
  Effect.map(connectTo(settings), (connectFor) => makeShard(settings.name, addressOf(settings), connectFor("inspect")))

/** A shard with its sessions. Nothing is connected yet. */
const connect = Effect.fnUntraced(function* (settings: ShardSettings) {
  const connectFor = yield* connectTo(settings)
  const shard = makeShard(settings.name, addressOf(settings), connectFor("inspect"))
  const sessions = sessionsOfShard(() => {
    live.verified = false
  })
  // One more of each kind than there are places: the one that health asks.
  const append = yield* sessions(connectFor("append"), limits.appendsAtOnce + 1)
  const live: LiveShard = {
    ...shard,
    sessions: { append, read: yield* sessions(connectFor("read"), limits.readsAtOnce + 1) },
    append: makeAppendEntries(makeTransactions(append)),
    places: { append: makePlaces(limits.appendsAtOnce), read: makePlaces(limits.readsAtOnce) },
  }
  return live
})

const inPlace = <A, E>(
  shard: LiveShard,
  kind: ShardUse,
  operation: string,
  run: Effect.Effect<A, E>,
): Effect.Effect<A, E | ShardUnavailable> =>
  Effect.uninterruptibleMask((restore) => {
    const places = shard.places[kind]
    places.waiting++
    return restore(places.permits.take(1)).pipe(
      Effect.timeoutOrElse({
        duration: `${limits.placeSeconds} seconds`,
        orElse: () => Effect.fail(tooLate(shard, operation, "pool")),
      }),
      Effect.ensuring(Effect.sync(() => places.waiting--)),
      Effect.andThen(
        Effect.suspend(() => {
          places.inUse++
          return Effect.ensuring(
            restore(run),
            Effect.suspend(() => {
              places.inUse--
              return places.permits.release(1)
            }),
          )
        }),
      ),
    )
  })

const inTime =
  (shard: Shard, operation: string, seconds: number) =>
  <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E | ShardUnavailable> =>
    Effect.timeoutOrElse(self, {
      duration: `${seconds} seconds`,
      orElse: () => Effect.fail(tooLate(shard, operation, "timeout")),
    })

const tooLate = (shard: Shard, operation: string, reason: "pool" | "timeout"): ShardUnavailable =>
  new ShardUnavailable({
    shard: shard.name,
    operation,
    reason,
    cause: new Error(reason === "pool" ? "no connection was free in time" : "the server did not answer in time"),
  })

/** One word where it says all. */
const shortly = ({ detail, reason }: ShardUnavailable): string =>
  reason === "connection" || reason === "timeout" ? reason : `${reason}, ${detail}`
