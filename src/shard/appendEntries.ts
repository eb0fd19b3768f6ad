/**
 * The append transaction: a batch of entries of one shard, all or nothing.
 *
 * The statements, in this order: make sure that the object rows exist, lock them, look up what may be stored already,
 * then insert the entries and update the rows. Between the look-up and the insert, `planAppend` decides. Mostly that is two
 * round trips: begin, rows and locks; entries and commit. Rows that are known to exist are not made sure of again.
 *
 * Rejected:
 * - One statement for all of it (`insert … on conflict do update … returning` in a CTE): its rows are locked in the order
 *   in which the executor meets them, and two batches with the same objects deadlock, also when the ids are sorted; and
 *   its snapshot is older than its locks, so it does not see what the transaction that it waited for has committed.
 * - Locking first and inserting only the missing rows: that inserts while locks are held, and deadlocks.
 * - `insert into log_entries … on conflict do nothing` in place of the look-up: positions would get gaps.
 * - A look-up of all that is older than the newest entry of its object. Where several workers append to the same objects,
 *   that is most of it, though an entry that is delivered for the first time is hardly ever stored already: the broker has
 *   lost count, or this worker slept while another one stored it. Those are inserted without it; if a unique key refuses
 *   that, the batch is repeated with all of them looked up.
 *
 * Why no deadlock is left: rows are first inserted in ascending order by a transaction that holds no lock on an older row,
 * then locked in ascending order; and whoever waits in the first step waits for a row that its owner inserted later than
 * all smaller ones.
 *
 * Where several workers append to the same objects, each would wait inside the statement that locks its rows, and then read
 * every one of them again, which has changed. So they queue before it: see `gate`.
 */
import { PgTypes } from "@effect/sql-pg"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect, Result, Schedule } from "effect"
import type { SqlError } from "effect/sql"
import { type NewEntry, type Place, type Placed, toStored } from "../contract/LogEntry.ts"
import { fromColumn, type ObjectId, toColumn } from "../contract/ObjectId.ts"
import { type Head, identityKey, mayExist, messageKey, type Plan, planAppend } from "./plan.ts"
import { type InTransaction, pipelined, type Transaction } from "./transaction.ts"
import { isConflict, sqlStateOf, uniqueViolation, withSqlState } from "./transient.ts"

/** Most ids of object rows that one process remembers for a shard: some megabytes. */
const knownMax = 65_536

/**
 * An advisory lock of the shard, taken before all rows by a batch that others will probably get in the way of. Any number
 * that the migrations do not use.
 */
export const gate = 7_306_085_897_111_914_344n

/** For so many batches it counts that one was mostly overtaken, or had entries that are stored. */
const rememberedBatches = 16

export type AppendEntries = (batch: ReadonlyArray<NewEntry>) => Effect.Effect<ReadonlyArray<Placed>, SqlError.SqlError>

/** Appends batches to a shard, each in one transaction; one that loses against another transaction is repeated a few times. */
export const makeAppendEntries = (inTransaction: InTransaction): AppendEntries => {
  /** Objects whose rows were seen. */
  const known = new Set<bigint>()
  /** So many batches still queue. */
  let queueing = 0
  /** So many batches still look up all that may be stored, whatever the broker says: after a replay, most of it is. */
  let suspecting = 0
  return Effect.fnUntraced(
    function* (batch: ReadonlyArray<NewEntry>) {
      if (batch.length === 0) return []
      const ids = sortedColumns(batch)
      const attempt = (mayBeStored: (entry: NewEntry) => boolean) =>
        inTransaction((transaction) => append(transaction, batch, ids, mayBeStored, known, queueing > 0))
      const { isOvertaken, isStored, placed } = yield* Effect.catchIf(
        attempt((entry) => entry.redelivered || suspecting > 0),
        isTaken,
        () => {
          suspecting = rememberedBatches
          return attempt(() => true)
        },
      )
      // Another worker had committed later entries of the same objects meanwhile.
      queueing = isOvertaken ? rememberedBatches : Math.max(0, queueing - 1)
      suspecting = isStored ? rememberedBatches : Math.max(0, suspecting - 1)
      if (known.size > knownMax) known.clear()
      for (const id of ids) known.add(id)
      return placed
    },
    Effect.tapError((error) =>
      Effect.sync(() => {
        // Whoever holds the gate may be frozen: others must not be held up by that for long.
        queueing = 0
        // A COMMIT whose answer was lost may have been carried out; a conflict was rolled back.
        if (!isConflict(error)) suspecting = Math.max(suspecting, 1)
      }),
    ),
    Effect.retry({
      while: (error) => error === rowsGone || isConflict(error),
      schedule: Schedule.jittered(Schedule.exponential("5 millis")),
      times: 5,
    }),
  )
}

/** An entry that was taken for new is stored already. */
const isTaken = (error: SqlError.SqlError) => sqlStateOf(error) === uniqueViolation

/** Rows that were seen are gone, since the database was restored. */
const rowsGone = withSqlState("02000", "rows of objects that were there are gone")

const append = Effect.fnUntraced(function* (
  { begin, commit, sql }: Transaction,
  batch: ReadonlyArray<NewEntry>,
  ids: ReadonlyArray<bigint>,
  mayBeStored: (entry: NewEntry) => boolean,
  known: Set<bigint>,
  queues: boolean,
) {
  const unknown = ids.filter((id) => !known.has(id))
  const [, , , heads] = yield* pipelined([
    begin,
    queues ? sql`select pg_advisory_xact_lock(${gate})` : Effect.void,
    unknown.length === 0 ? Effect.void : ensureObjects(sql, unknown),
    lockObjects(sql, ids),
  ])
  if (heads.size < ids.length) {
    known.clear()
    return yield* rowsGone
  }
  const overtaken = batch.filter((entry) => mayExist(entry, heads.get(entry.id)!))
  const suspects = overtaken.filter(mayBeStored)
  const byIdentity = suspects.length === 0 ? none : yield* findByIdentity(sql, suspects)
  const named = batch.filter((entry) => entry.messageId !== undefined)
  const byMessageId = named.length === 0 ? none : yield* findByMessageId(sql, named)
  const plan = planAppend(batch, heads, byIdentity, byMessageId)
  yield* plan.inserts.length === 0 ? commit : pipelined([store(sql, plan), commit])
  return { placed: plan.placed, isOvertaken: overtaken.length > batch.length / 2, isStored: byIdentity.size > 0 }
})

// ---------------------------------------------------------------------------------------------------------------------
// Statements
// ---------------------------------------------------------------------------------------------------------------------

const ensureObjects = (sql: PgClient, ids: ReadonlyArray<bigint>) => sql`
  insert into objects (id, entries, last_timestamp)
  select id, 0, -1 from unnest(${int8s(ids)}) as missing (id)
  on conflict do nothing`

const lockObjects = (
  sql: PgClient,
  ids: ReadonlyArray<bigint>,
): Effect.Effect<ReadonlyMap<ObjectId, Head>, SqlError.SqlError> =>
  Effect.map(
    sql<{ id: bigint; entries: bigint; last_timestamp: bigint }>`
      select id, entries, last_timestamp from objects where id = any(${int8s(ids)}) order by id for update`,
    (rows) => {
      const heads = new Map<ObjectId, Head>()
      for (const row of rows) {
        heads.set(fromColumn(row.id), { entries: Number(row.entries), lastTimestamp: row.last_timestamp })
      }
      return heads
    },
  )

// The look-ups ask for the first entry of a range, which has room for one, in the order of an index: that index is the only one
// that can serve them. Asked for by equality, an entry may be searched for through any index that begins with the object: where
// statistics were taken while each object had one entry, PostgreSQL takes the index of positions, and reads the whole log for
// each entry until the next ANALYZE.

const findByIdentity = (
  sql: PgClient,
  entries: ReadonlyArray<NewEntry>,
): Effect.Effect<ReadonlyMap<string, Place>, SqlError.SqlError> =>
  Effect.map(
    sql<StoredPlace & { object_id: bigint }>`
      select wanted.object_id, found.timestamp, found.seq, found.position
      from unnest(
        ${int8s(entries.map((entry) => toColumn(entry.id)))},
        ${int8s(entries.map((entry) => entry.timestamp))},
        ${int8s(entries.map((entry) => BigInt(entry.seq)))}
      ) as wanted (object_id, timestamp, seq)
      cross join lateral (
        select timestamp, seq, position from log_entries
        where object_id = wanted.object_id
          and (timestamp, seq) >= (wanted.timestamp, wanted.seq) and (timestamp, seq) <= (wanted.timestamp, wanted.seq)
        order by timestamp, seq limit 1
      ) as found`,
    (rows) => {
      const found = new Map<string, Place>()
      for (const row of rows) {
        const place = toPlace(row)
        found.set(identityKey(fromColumn(row.object_id), place), place)
      }
      return found
    },
  )

const findByMessageId = (
  sql: PgClient,
  entries: ReadonlyArray<NewEntry>,
): Effect.Effect<ReadonlyMap<string, Place>, SqlError.SqlError> =>
  Effect.map(
    // By number: the id itself may come back without its beginning, see `toStored`.
    sql<StoredPlace & { number: bigint }>`
      select wanted.number, found.timestamp, found.seq, found.position
      from unnest(
        ${int8s(entries.map((entry) => toColumn(entry.id)))},
        ${texts(entries.map((entry) => entry.messageId!))}
      ) with ordinality as wanted (object_id, message_id, number)
      cross join lateral (
        select timestamp, seq, position from log_entries
        where object_id = wanted.object_id and message_id >= wanted.message_id and message_id <= wanted.message_id
        order by message_id limit 1
      ) as found`,
    (rows) => {
      const found = new Map<string, Place>()
      for (const row of rows) {
        const { id, messageId } = entries[Number(row.number) - 1]!
        found.set(messageKey(id, messageId!), toPlace(row))
      }
      return found
    },
  )

/** Entries and object rows in one statement, to save a round trip while the rows are locked. */
const store = (sql: PgClient, plan: Plan) => {
  const ids: Array<bigint> = []
  const timestamps: Array<bigint> = []
  const seqs: Array<bigint> = []
  const positions: Array<bigint> = []
  const logs: Array<string> = []
  const escapes: Array<boolean> = []
  const messageIds: Array<string | null> = []
  for (const { entry, position } of plan.inserts) {
    const stored = toStored(entry.log)
    ids.push(toColumn(entry.id))
    timestamps.push(entry.timestamp)
    seqs.push(BigInt(entry.seq))
    positions.push(BigInt(position))
    logs.push(stored.log)
    escapes.push(stored.escaped)
    messageIds.push(entry.messageId ?? null)
  }
  const heads = [...plan.heads]
  return sql`
    with inserted as (
      insert into log_entries (object_id, timestamp, seq, position, log, escaped, message_id)
      select * from unnest(
        ${int8s(ids)}, ${int8s(timestamps)}, ${int8s(seqs)}, ${int8s(positions)},
        ${texts(logs)}, ${array(escapes, PgTypes.OID.bool)}, ${texts(messageIds)}
      )
    )
    update objects
    set entries = changed.entries, last_timestamp = changed.last_timestamp
    from unnest(
      ${int8s(heads.map(([id]) => toColumn(id)))},
      ${int8s(heads.map(([, head]) => BigInt(head.entries)))},
      ${int8s(heads.map(([, head]) => head.lastTimestamp))}
    ) as changed (id, entries, last_timestamp)
    where objects.id = changed.id`
}

// ---------------------------------------------------------------------------------------------------------------------
// Columns
// ---------------------------------------------------------------------------------------------------------------------

interface StoredPlace {
  readonly timestamp: bigint
  readonly seq: bigint
  readonly position: bigint
}

const none: ReadonlyMap<string, Place> = new Map()

const toPlace = (row: StoredPlace): Place => ({
  position: Number(row.position),
  timestamp: row.timestamp,
  seq: Number(row.seq),
})

/** The distinct ids of a batch in the order of the column, which is signed: every transaction must use the same order. */
const sortedColumns = (batch: ReadonlyArray<NewEntry>): ReadonlyArray<bigint> => {
  const distinct = new Set<bigint>()
  for (const entry of batch) distinct.add(toColumn(entry.id))
  return [...distinct].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
}

/** With the type said, an array that is empty or all null encodes too, and the statement stays the same. */
const array = (values: ReadonlyArray<unknown>, elementOid: number) =>
  Result.getOrThrow(PgTypes.array(values, elementOid))
const int8s = (values: ReadonlyArray<bigint>) => array(values, PgTypes.OID.int8)
const texts = (values: ReadonlyArray<string | null>) => array(values, PgTypes.OID.text)
