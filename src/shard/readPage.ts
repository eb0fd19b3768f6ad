/**
 * The read statements: keyset pages of one object's log.
 *
 * Three fixed texts, one for each order. Every bound is always there, with the widest value where the query has none, so
 * that a connection prepares each statement once.
 */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect } from "effect"
import type { SqlError } from "effect/sql"
import { compareStamps, fromStored, type LogEntry, type Stamp, timestampMax } from "../domain/LogEntry.ts"
import { type ObjectId, toColumn } from "../domain/ObjectId.ts"
import type { PageQuery } from "./ShardPool.ts"

/** What a page may hold, all bounds exclusive but `positionMax`. Shared with the in-memory twin. */
export interface PageRange {
  readonly above: Stamp
  readonly below: Stamp
  readonly positionAbove: number
  readonly positionMax: number
}

const timestampMin = -0x8000_0000_0000_0000n

/** Clamped to what the column can hold: a bound beyond it means the same as the widest one. */
const clamp = (nanos: bigint): bigint =>
  nanos < timestampMin ? timestampMin : nanos > timestampMax ? timestampMax : nanos

/** The bounds of a query: a single range of stamps and one of positions. */
export const pageRange = (query: PageQuery): PageRange => {
  const { after, from, order, to, upTo } = query
  let above: Stamp = from === undefined ? { timestamp: timestampMin, seq: -1 } : { timestamp: clamp(from), seq: -1 }
  let below: Stamp =
    to === undefined || to > timestampMax
      ? { timestamp: timestampMax, seq: Number.MAX_SAFE_INTEGER }
      : { timestamp: clamp(to), seq: -1 }
  let positionAbove = 0
  if (after !== undefined) {
    if ("position" in after) positionAbove = after.position
    else if (order === "desc") below = compareStamps(after, below) < 0 ? after : below
    else above = compareStamps(after, above) > 0 ? after : above
  }
  return { above, below, positionAbove, positionMax: upTo }
}

/** One page; at most `maxEntries`, ending with the entry that reaches `maxBytes`. */
export const readPage: (sql: PgClient, query: PageQuery) => Effect.Effect<ReadonlyArray<LogEntry>, SqlError.SqlError> =
  Effect.fnUntraced(function* (sql: PgClient, query: PageQuery) {
    const rows = yield* statements[query.order](sql, query, pageRange(query))
    return rows.map(toEntry)
  })

/** How many entries an object has; 0 without a row. */
export const countEntries = (sql: PgClient, id: ObjectId): Effect.Effect<number, SqlError.SqlError> =>
  Effect.map(sql<{ entries: bigint }>`select entries from objects where id = ${toColumn(id)}`, ([row]) =>
    row === undefined ? 0 : Number(row.entries),
  )

interface Row {
  readonly position: bigint
  readonly timestamp: bigint
  readonly seq: bigint
  readonly log: string
  readonly escaped: boolean
}

const toEntry = (row: Row): LogEntry => ({
  position: Number(row.position),
  timestamp: row.timestamp,
  seq: Number(row.seq),
  log: fromStored(row.log, row.escaped),
})

// The byte bound is enforced in the database, so that a page of large entries never leaves it. `octet_length` reads the
// length of a value that is stored out of line without fetching it, and only the rows that pass are fetched.
// The row comparison is a range of the primary key: the scan starts at the cursor and stops at `limit`.

const ascending = (sql: PgClient, query: PageQuery, range: PageRange) => sql<Row>`
  select position, timestamp, seq, log, escaped
  from (
    select position, timestamp, seq, log, escaped, sum(octet_length(log)::bigint) over (
      order by timestamp, seq rows between unbounded preceding and 1 preceding
    ) as bytes_before
    from (
      select position, timestamp, seq, log, escaped
      from log_entries
      where object_id = ${toColumn(query.id)}
        and (timestamp, seq) > (${range.above.timestamp}, ${BigInt(range.above.seq)})
        and (timestamp, seq) < (${range.below.timestamp}, ${BigInt(range.below.seq)})
        and position > ${BigInt(range.positionAbove)}
        and position <= ${BigInt(range.positionMax)}
      order by timestamp, seq
      limit ${BigInt(query.maxEntries)}
    ) as candidates
  ) as page
  where bytes_before is null or bytes_before < ${BigInt(query.maxBytes)}
  order by timestamp, seq`

const descending = (sql: PgClient, query: PageQuery, range: PageRange) => sql<Row>`
  select position, timestamp, seq, log, escaped
  from (
    select position, timestamp, seq, log, escaped, sum(octet_length(log)::bigint) over (
      order by timestamp desc, seq desc rows between unbounded preceding and 1 preceding
    ) as bytes_before
    from (
      select position, timestamp, seq, log, escaped
      from log_entries
      where object_id = ${toColumn(query.id)}
        and (timestamp, seq) > (${range.above.timestamp}, ${BigInt(range.above.seq)})
        and (timestamp, seq) < (${range.below.timestamp}, ${BigInt(range.below.seq)})
        and position > ${BigInt(range.positionAbove)}
        and position <= ${BigInt(range.positionMax)}
      order by timestamp desc, seq desc
      limit ${BigInt(query.maxEntries)}
    ) as candidates
  ) as page
  where bytes_before is null or bytes_before < ${BigInt(query.maxBytes)}
  order by timestamp desc, seq desc`

const byPosition = (sql: PgClient, query: PageQuery, range: PageRange) => sql<Row>`
  select position, timestamp, seq, log, escaped
  from (
    select position, timestamp, seq, log, escaped, sum(octet_length(log)::bigint) over (
      order by position rows between unbounded preceding and 1 preceding
    ) as bytes_before
    from (
      select position, timestamp, seq, log, escaped
      from log_entries
      where object_id = ${toColumn(query.id)}
        and (timestamp, seq) > (${range.above.timestamp}, ${BigInt(range.above.seq)})
        and (timestamp, seq) < (${range.below.timestamp}, ${BigInt(range.below.seq)})
        and position > ${BigInt(range.positionAbove)}
        and position <= ${BigInt(range.positionMax)}
      order by position
      limit ${BigInt(query.maxEntries)}
    ) as candidates
  ) as page
  where bytes_before is null or bytes_before < ${BigInt(query.maxBytes)}
  order by position`

const statements = { asc: ascending, desc: descending, position: byPosition }
