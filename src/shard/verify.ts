/**
 * Verifies shards before they serve: reachable, supported, migrated, and recorded as part of the configured placement.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect, Option, Schema, type Semaphore } from "effect"
import { type Migrator, SqlError } from "effect/sql"
import { compare, type Found, PlacementMismatch, type PlacementRecord, ShardRecord } from "../placement/guard.ts"
import { checkMigrated, checkServer, migrate, type PostgresTooOld, type SchemaOutdated } from "./migrations.ts"
import type { AppendEntries } from "./appendEntries.ts"
import { ShardUnavailable } from "./ShardPool.ts"
import { unavailable } from "./transient.ts"

/** One shard, as this process knows it. */
export interface Shard {
  readonly name: string
  readonly address: string
  readonly sql: PgClient
  readonly append: AppendEntries
  readonly permits: Semaphore.Semaphore
  /** Operations that have a permit, and that wait for one. */
  inUse: number
  waiting: number
  /** One verification at a time. */
  readonly verifying: Semaphore.Semaphore
  /** Set once, by the verification. */
  verified: boolean
  /** What its database was last seen to hold. */
  record: Found["record"]
}

export interface Verification {
  readonly shards: ReadonlyArray<Shard>
  readonly autoMigrate: boolean
  readonly placement: PlacementRecord
}

const pause = "2 seconds"

/** Nothing is asked of a server that does not answer at all within this. */
const answerTimeout = "15 seconds"

/** Inspects all shards until the guard lets this worker start, or refuses it. Completes a first start. */
export const verifyAll = Effect.fnUntraced(function* (
  shards: ReadonlyArray<Shard>,
  settings: { readonly autoMigrate: boolean; readonly placement: PlacementRecord },
): Effect.fn.Return<Verification, PlacementMismatch | PostgresTooOld | SchemaOutdated> {
  const state: Verification = { shards, autoMigrate: settings.autoMigrate, placement: settings.placement }
  const lookAtAll = Effect.forEach(shards, (shard) => inspect(state, shard), {
    concurrency: "unbounded",
    discard: true,
  })
  while (true) {
    yield* lookAtAll
    const done = yield* decide(state, shards).pipe(
      // The databases are not looked at in the same moment: one that was empty may have been recorded by another worker
      // before the next was seen ready. Nothing that is seen after a ready one can be from before it, so look again.
      Effect.catchTag("PlacementMismatch", () => Effect.andThen(lookAtAll, decide(state, shards))),
      Effect.catchTag("ShardUnavailable", (error) =>
        Effect.as(Effect.andThen(Effect.logWarning(error.message), Effect.sleep(pause)), false),
      ),
    )
    if (done) return state
  }
})

/** Verifies a shard that was unreachable at the start. */
export const verifyLater = (state: Verification, shard: Shard): Effect.Effect<void, ShardUnavailable> =>
  shard.verifying.withPermits(1)(Effect.suspend(() => (shard.verified ? Effect.void : verifyNow(state, shard))))

const verifyNow = Effect.fnUntraced(
  function* (state: Verification, shard: Shard) {
    yield* look(state, shard)
    yield* decide(state, [shard])
    if (!shard.verified) return yield* refused(shard, "unverified", "its placement cannot be verified yet")
    yield* Effect.logInfo(`shard ${shard.name} at ${shard.address} is back and verified`)
  },
  (self, _, shard) =>
    Effect.catchTags(self, {
      PlacementMismatch: (error) =>
        Effect.andThen(Effect.logError(error.message), refused(shard, "placement", error.message)),
      SchemaOutdated: (error) =>
        Effect.andThen(Effect.logError(error.message), refused(shard, "schema", error.message)),
      PostgresTooOld: (error) =>
        Effect.andThen(Effect.logError(error.message), refused(shard, "version", error.message)),
    }),
)

/** Does what the guard says; true when this worker may start. Only shards in `reached` are written to. */
const decide = Effect.fnUntraced(function* (state: Verification, reached: ReadonlyArray<Shard>) {
  const { placement, shards } = state
  const verdict = compare(
    placement,
    shards.map(({ address, name, record }) => ({ shard: name, address, record })),
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
      if (verdict.empty.length > 0) yield* forEach(among(verdict.empty), (shard) => recordPending(shard, placement))
      else yield* forEach(among(verdict.shards), recordReady)
      return false
    case "Match":
      yield* forEach(among(verdict.toRecord), recordReady)
      for (const shard of reached) shard.verified ||= shard.record !== "unreachable"
      return true
  }
})

const forEach = <E>(shards: ReadonlyArray<Shard>, run: (shard: Shard) => Effect.Effect<unknown, E>) =>
  Effect.forEach(shards, run, { concurrency: "unbounded", discard: true })

// ---------------------------------------------------------------------------------------------------------------------
// One database
// ---------------------------------------------------------------------------------------------------------------------

/** Looks at a shard; one that cannot be reached is noted as such. */
const inspect = Effect.fnUntraced(function* (state: Verification, shard: Shard) {
  yield* look(state, shard).pipe(
    Effect.catchTag("ShardUnavailable", (error) => {
      shard.record = "unreachable"
      return Effect.logWarning(`${error.message} (at ${shard.address})`)
    }),
  )
})

/** Checks and migrates the database, and reads its record. */
const look = Effect.fnUntraced(
  function* (state: Verification, shard: Shard) {
    const at = { shard: shard.name, address: shard.address }
    yield* Effect.timeoutOrElse(checkServer(shard.sql, at), {
      duration: answerTimeout,
      orElse: () => Effect.fail(refused(shard, "timeout", "the server did not answer in time")),
    })
    yield* state.autoMigrate ? migrate(shard.sql) : checkMigrated(shard.sql, at)
    shard.record = yield* readRecord(shard.sql)
  },
  (self, _, shard) =>
    Effect.catchTags(self, {
      SqlError: (error) => Effect.fail(unavailable(shard.name, "verify", error)),
      MigrationError: (error) => Effect.fail(migrationFailed(shard, error)),
    }),
)

const migrationFailed = (shard: Shard, error: Migrator.MigrationError): ShardUnavailable =>
  SqlError.isSqlError(error.cause)
    ? unavailable(shard.name, "migrate", error.cause)
    : refused(shard, "migration", error.message)

const refused = (shard: Shard, reason: string, message: string): ShardUnavailable =>
  new ShardUnavailable({ shard: shard.name, operation: "verify", reason, cause: new Error(message) })

const decodeRecord = Schema.decodeUnknownOption(ShardRecord)

const readRecord = (sql: PgClient): Effect.Effect<Found["record"], SqlError.SqlError> =>
  Effect.map(sql`select name, state, placement from shard`, ([row]) =>
    row === undefined ? undefined : Option.getOrElse(decodeRecord(row), () => "unreadable" as const),
  )

/** Never overwrites: of two workers that differ, the later one finds the other's record when it looks again. */
const recordPending = (shard: Shard, placement: PlacementRecord) =>
  shard.sql`
    insert into shard (name, state, placement) values (${shard.name}, 'pending', ${shard.sql.json(placement)})
    on conflict do nothing`.pipe(Effect.mapError((error) => unavailable(shard.name, "record", error)))

const recordReady = (shard: Shard) =>
  shard.sql`update shard set state = 'ready' where state = 'pending' and name = ${shard.name}`.pipe(
    Effect.mapError((error) => unavailable(shard.name, "record", error)),
  )
