/**
 * The read statements: keyset pages of logs.
 *
 * Fixed texts, two for each order: one for the first pages of several reads, which also tells how many entries their objects have,
 * and one for the later pages of a read. Every bound is always there, with the widest value where the query has none, so that a
 * connection prepares each statement once.
 *
 * Small reads come by the thousand, and a round trip costs more than what it brings: so the first pages of those that wait are
 * fetched together. 50,000 reads of ten entries on two cores with all else: 464 a second by a statement each.
 */
import { PgTypes } from "@effect/sql-pg"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect, Result } from "effect"
import type { SqlError } from "effect/sql"
import { compareStamps, fromStored, type LogEntry, type Stamp, timestampMax } from "../contract/LogEntry.ts"
import { toColumn } from "../contract/ObjectId.ts"
import type { FirstPage, FirstPagesQuery, PageQuery, ReadOrder, ReadQuery } from "./ShardPool.ts"

/** What a page may hold, all bounds exclusive. Shared with the in-memory twin. */
export interface PageRange {
  readonly above: Stamp
  readonly below: Stamp
  readonly positionAbove: number
}

const timestampMin = -0x8000_0000_0000_0000n

/** Clamped to what the column can hold: a bound beyond it means the same as the widest one. */
const clamp = (nanos: bigint): bigint =>
  nanos < timestampMin ? timestampMin : nanos > timestampMax ? timestampMax : nanos

/** The bounds of a query: a single range of stamps and one of positions. */
export const pageRange = (order: ReadOrder, { after, from, to }: ReadQuery): PageRange => {
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
  return { above, below, positionAbove }
}

/** Positions and sequence numbers come as `float8`, which is exact up to 2^53 and a number here: `int8` makes a bigint of each. */
interface Row {
  readonly at_position: number
  readonly timestamp: bigint
  readonly at_seq: number
  readonly log: string
  readonly escaped: boolean
}

/** Under names that the order of a statement does not mean. */
const numbers = "position::float8 as at_position, seq::float8 as at_seq"

const toEntry = (row: Row): LogEntry => ({
  position: row.at_position,
  timestamp: row.timestamp,
  seq: row.at_seq,
  log: fromStored(row.log, row.escaped),
})

const orders = { asc: "timestamp, seq", desc: "timestamp desc, seq desc", position: "position" } as const

// The byte bounds are enforced in the database, so that a page of large entries never leaves it. `octet_length` reads the
// length of a value that is stored out of line without fetching it, and only what passes is fetched.
// The row comparison is a range of the primary key: the scan starts at the cursor and stops at `limit`.

/** One page; at most `maxEntries`, ending with the entry that reaches `maxBytes`. */
export const readPage = (
  sql: PgClient,
  query: PageQuery,
): Effect.Effect<ReadonlyArray<LogEntry>, SqlError.SqlError> => {
  const { above, below, positionAbove } = pageRange(query.order, query)
  const order = sql.literal(orders[query.order])
  return Effect.map(
    sql<Row>`
      select ${sql.literal(numbers)}, timestamp, log, escaped
      from (
        select position, timestamp, seq, log, escaped, sum(octet_length(log)) over (
          order by ${order} rows between unbounded preceding and 1 preceding
        ) as bytes_before
        from (
          select position, timestamp, seq, log, escaped
          from log_entries
          where object_id = ${toColumn(query.id)}
            and (timestamp, seq) > (${above.timestamp}, ${BigInt(above.seq)})
            and (timestamp, seq) < (${below.timestamp}, ${BigInt(below.seq)})
            and position > ${BigInt(positionAbove)}
            and position <= ${BigInt(query.scanTo)}
            and position <= ${BigInt(query.upTo)}
          order by ${order}
          limit ${BigInt(query.maxEntries)}
        ) as candidates
      ) as page
      where bytes_before is null or bytes_before < ${BigInt(query.maxBytes)}
      order by ${order}`,
    (rows) => rows.map(toEntry),
  )
}

/** What a row is of the first page of a read: one of its entries, or the only one of an empty page. */
type FirstRow = { readonly read: number; readonly up_to: number } & (
  | Row
  | { readonly at_position: null }
  /** Beyond the bound of bytes. */
  | { readonly at_position: number; readonly log: null }
)

const int8s = (values: ReadonlyArray<bigint>) => Result.getOrThrow(PgTypes.array(values, PgTypes.OID.int8))

/** The first page of each read. Entries beyond `maxBytes` of all pages come without their text. */
export const readFirstPages = (
  sql: PgClient,
  { maxBytes, order: ofReads, reads }: FirstPagesQuery,
): Effect.Effect<ReadonlyArray<FirstPage>, SqlError.SqlError> => {
  const ranges = reads.map((read) => pageRange(ofReads, read))
  const order = sql.literal(orders[ofReads])
  return Effect.map(
    sql<FirstRow>`
      select number::int4 as read, entries::float8 as up_to, ${sql.literal(numbers)}, timestamp, escaped,
        case when bytes_before is null or bytes_before < ${BigInt(maxBytes)} then log end as log
      from (
        select wanted.number, head.entries, page.*, sum(octet_length(page.log)) over (
          order by wanted.number, ${order} rows between unbounded preceding and 1 preceding
        ) as bytes_before
        from unnest(
          ${int8s(reads.map(({ id }) => toColumn(id)))},
          ${int8s(ranges.map(({ above }) => above.timestamp))}, ${int8s(ranges.map(({ above }) => BigInt(above.seq)))},
          ${int8s(ranges.map(({ below }) => below.timestamp))}, ${int8s(ranges.map(({ below }) => BigInt(below.seq)))},
          ${int8s(ranges.map(({ positionAbove }) => BigInt(positionAbove)))},
          ${int8s(reads.map(({ scanTo }) => BigInt(scanTo)))},
          ${int8s(reads.map(({ maxEntries }) => BigInt(maxEntries)))}
        ) with ordinality as wanted (
          id, above_timestamp, above_seq, below_timestamp, below_seq, position_above, scan_to, max_entries, number
        )
        cross join lateral (
          select coalesce((select entries from objects where objects.id = wanted.id), 0) as entries
        ) as head
        left join lateral (
          select position, timestamp, seq, log, escaped
          from log_entries
          where object_id = wanted.id
            and (timestamp, seq) > (wanted.above_timestamp, wanted.above_seq)
            and (timestamp, seq) < (wanted.below_timestamp, wanted.below_seq)
            and position > wanted.position_above
            and position <= wanted.scan_to
            and position <= head.entries
          order by ${order}
          limit wanted.max_entries
        ) as page on true
      ) as pages
      order by number, ${order}`,
    (rows) => {
      const pages = reads.map(() => ({ upTo: 0, entries: new Array<LogEntry>(), isCut: false }))
      for (const row of rows) {
        const page = pages[row.read - 1]!
        page.upTo = row.up_to
        if (row.at_position === null) continue
        if (row.log === null) page.isCut = true
        else page.entries.push(toEntry(row))
      }
      return pages
    },
  )
}
