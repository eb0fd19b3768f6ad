/**
 * Verifies shards before they serve: reachable, suitable, migrated, and recorded as part of the configured placement. It
 * is done anew after a session turned out to be useless: another server may stand there now.
 */
import { Deferred, Effect, Random, type Scope } from "effect"
import type { SqlError } from "effect/sql"
import { compare, PlacementMismatch, type PlacementRecord } from "../placement/guard.ts"
import { checkServer } from "./checkServer.ts"
import { settingsLost } from "./connectSession.ts"
import { verificationSeconds } from "./limits.ts"
import { checkMigrated, migrate } from "./migrations.ts"
import { readRecord, recordDecided, recordPending, recordReady, type Seen, unreachable } from "./record.ts"
import type { Connect, Connected } from "./sessions.ts"
import { ShardUnavailable } from "./ShardPool.ts"
import { ShardUnsuitable } from "./ShardUnsuitable.ts"
import { unavailable } from "./transient.ts"

/** One shard, as its verification knows it. */
export interface Shard {
  readonly name: string
  readonly address: string
  /** A session that inspects. */
  readonly connect: Connect
  /** Is what the sessions lead to verified? */
  verified: boolean
  /** The verification that is under way, which all who need one wait for. */
  verifying: Deferred.Deferred<void, ShardUnavailable> | undefined
  /** What its database was last seen to hold. */
  seen: Seen
}

export const makeShard = (name: string, address: string, connect: Connect): Shard => ({
  name,
  address,
  connect,
  verified: false,
  verifying: undefined,
  seen: unreachable,
})

export interface Verification {
  readonly shards: ReadonlyArray<Shard>
  /** Create and migrate tables; otherwise outdated ones make a shard unsuitable. */
  readonly autoMigrate: boolean
  readonly placement: PlacementRecord
}

const pause = "2 seconds"

/** Inspects all shards until the guard lets this worker start, or refuses it. Completes a first start. */
export const verifyAll = (verification: Verification): Effect.Effect<void, PlacementMismatch | ShardUnsuitable> => {
  const lookAtAll = Effect.forEach(verification.shards, (shard) => inspect(verification, shard), {
    concurrency: "unbounded",
    discard: true,
  })
  return settle(verification, lookAtAll).pipe(
    Effect.catchTag("ShardUnavailable", (error) =>
      Effect.as(Effect.andThen(Effect.logWarning(error.message), Effect.sleep(pause)), false),
    ),
    Effect.repeat({ until: (done) => done }),
    Effect.asVoid,
  )
}

/** The same where every shard has to be there now: waits for none. All are migrated that can be. */
export const verifyAllNow = (
  verification: Verification,
): Effect.Effect<void, PlacementMismatch | ShardUnsuitable | ShardUnavailable> => {
  const lookAtAll = Effect.forEach(verification.shards, (shard) => Effect.exit(look(verification, shard)), {
    concurrency: "unbounded",
  }).pipe(Effect.flatMap((exits) => Effect.forEach(exits, (exit) => exit, { discard: true })))
  return Effect.asVoid(Effect.repeat(settle(verification, lookAtAll), { until: (done) => done }))
}

/** Looks, and does what the guard says; true when this worker may start. */
const settle = <E>(verification: Verification, lookAtAll: Effect.Effect<void, E>) => {
  const once = Effect.andThen(lookAtAll, decide(verification, verification.shards))
  // The databases are not looked at in the same moment: one that was empty may have been recorded by another worker
  // before the next was seen ready. Nothing that is seen after a ready one can be from before it, so look again.
  return Effect.catchIf(
    once,
    (error) => error instanceof PlacementMismatch,
    () => once,
  )
}

/**
 * Verifies one shard, unless it is. Whoever comes while that is under way gets its result, be it a failure: nobody waits
 * for longer than one verification. It goes on in the scope where those who wait give up.
 */
export const verifyLater = (
  verification: Verification,
  shard: Shard,
  scope: Scope.Scope,
): Effect.Effect<void, ShardUnavailable> =>
  Effect.uninterruptibleMask((restore) => {
    if (shard.verified) return Effect.void
    if (shard.verifying !== undefined) return restore(Deferred.await(shard.verifying))
    const verifying = Deferred.makeUnsafe<void, ShardUnavailable>()
    shard.verifying = verifying
    return Effect.interruptible(verifyNow(verification, shard)).pipe(
      Effect.onExit((exit) => {
        shard.verifying = undefined
        return Deferred.done(verifying, exit)
      }),
      Effect.forkIn(scope),
      Effect.andThen(restore(Deferred.await(verifying))),
    )
  })

const verifyNow = Effect.fnUntraced(
  function* (verification: Verification, shard: Shard) {
    yield* look(verification, shard)
    yield* decide(verification, [shard])
    if (!shard.verified) return yield* refused(shard, "unverified", "its placement cannot be verified yet")
    yield* Effect.logInfo(`shard ${shard.name} at ${shard.address} is verified`)
  },
  (self, _, shard) =>
    Effect.catchTags(self, {
      PlacementMismatch: (error) =>
        Effect.andThen(Effect.logError(error.message), refused(shard, "placement", error.message)),
      ShardUnsuitable: (error) =>
        Effect.andThen(Effect.logError(error.message), refused(shard, error.reason, error.problem)),
    }),
)

/** Does what the guard says; true when this worker may start. Only shards in `reached` are written to. */
const decide = Effect.fnUntraced(function* ({ placement, shards }: Verification, reached: ReadonlyArray<Shard>) {
  const verdict = compare(
    placement,
    shards.map(({ address, name, seen }) => ({ shard: name, address, record: seen.record, isEmpty: seen.isEmpty })),
  )
  const among = (names: ReadonlyArray<string>) => reached.filter((shard) => names.includes(shard.name))
  switch (verdict._tag) {
    case "Refuse":
      return yield* new PlacementMismatch({ reasons: verdict.reasons })
    case "Wait":
      yield* Effect.logWarning(`first start: waiting for the shards ${verdict.unreachable.join(", ")}`)
      yield* Effect.sleep(pause)
      return false
    case "Initialise":
      // Pending everywhere first, and only after another look ready: so that two placements cannot both begin.
      if (verdict.empty.length > 0) yield* recordAllPending(among(verdict.empty), placement)
      else yield* recordAllReady(among(verdict.shards), placement)
      return false
    case "Match":
      for (const shard of among(verdict.toRecord)) {
        if (!(yield* onSession(shard, ({ sql }) => recordReady(sql, shard.seen)))) return false
      }
      for (const shard of reached) shard.verified ||= shard.seen.record !== "unreachable"
      return true
  }
})

/**
 * What is there already may be of a start that is under way, and which completes meanwhile: then it is not as it was seen.
 * Two that wait for each other wait differently long.
 */
const recordAllPending = Effect.fnUntraced(function* (shards: ReadonlyArray<Shard>, placement: PlacementRecord) {
  if (shards.some(({ seen }) => seen.record !== undefined)) yield* Effect.sleep(500 + 1_000 * (yield* Random.next))
  yield* Effect.forEach(
    shards,
    (shard) => onSession(shard, ({ sql }) => recordPending(sql, shard.name, placement, shard.seen)),
    { concurrency: "unbounded", discard: true },
  )
})

/**
 * The first one decides between two placements that begin at once, so they agree which one that is: the address is what
 * both know. Once it is ready, the others' records give way.
 */
const recordAllReady = Effect.fnUntraced(function* (shards: ReadonlyArray<Shard>, placement: PlacementRecord) {
  const [first, ...others] = shards.toSorted((one, other) => (one.address < other.address ? -1 : 1))
  if (!(yield* onSession(first!, ({ sql }) => recordReady(sql, first!.seen)))) return
  yield* Effect.forEach(others, (shard) => onSession(shard, ({ sql }) => recordDecided(sql, shard.name, placement)), {
    concurrency: "unbounded",
    discard: true,
  })
})

// ---------------------------------------------------------------------------------------------------------------------
// One database
// ---------------------------------------------------------------------------------------------------------------------

/** Looks at a shard; one that cannot be reached is noted as such. */
const inspect = (verification: Verification, shard: Shard): Effect.Effect<void, ShardUnsuitable> =>
  Effect.catchTag(look(verification, shard), "ShardUnavailable", (error) => {
    shard.seen = unreachable
    return Effect.logWarning(`${error.message} (at ${shard.address})`)
  })

/** Checks and migrates the database, and reads its record. */
const look = (verification: Verification, shard: Shard): Effect.Effect<void, ShardUnavailable | ShardUnsuitable> =>
  Effect.gen(function* () {
    const first = yield* inTime(shard, shard.connect)
    const { sql } = first
    yield* inTime(shard, checkServer(sql, shard))
    // A pooler that shares its connections gives this one the connection of the first, which then bears its mark.
    yield* inTime(shard, Effect.andThen(shard.connect, first.isFit))
    yield* verification.autoMigrate ? migrate(sql, shard) : inTime(shard, checkMigrated(sql, shard))
    shard.seen = yield* inTime(shard, readRecord(sql))
  }).pipe(
    Effect.scoped,
    Effect.catchTag("SqlError", (error): Effect.Effect<never, ShardUnavailable | ShardUnsuitable> => {
      const failure = unavailable(shard.name, "verify", error)
      if (failure.reason !== settingsLost) return Effect.fail(failure)
      const { address, name } = shard
      const problem = `cannot be used through this pooler: ${failure.detail}`
      return Effect.fail(new ShardUnsuitable({ shard: name, address, reason: "pooler", problem }))
    }),
  )

/** Runs on a session of its own. */
const onSession = <A>(
  shard: Shard,
  run: (session: Connected) => Effect.Effect<A, SqlError.SqlError>,
): Effect.Effect<A, ShardUnavailable> =>
  inTime(shard, Effect.scoped(Effect.flatMap(shard.connect, run))).pipe(
    Effect.catchTag("SqlError", (error) => Effect.fail(unavailable(shard.name, "record", error))),
  )

/** Nothing more is asked of a server that does not answer. */
const inTime = <A, E, R>(shard: Shard, self: Effect.Effect<A, E, R>): Effect.Effect<A, E | ShardUnavailable, R> =>
  Effect.timeoutOrElse(self, {
    duration: `${verificationSeconds} seconds`,
    orElse: () => refused(shard, "timeout", "the server did not answer in time"),
  })

const refused = (shard: Shard, reason: string, message: string): Effect.Effect<never, ShardUnavailable> =>
  Effect.fail(new ShardUnavailable({ shard: shard.name, operation: "verify", reason, cause: new Error(message) }))
