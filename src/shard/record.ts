/** The placement guard's record in a shard's database: read, and changed only as it was seen. */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect, Option, Schema } from "effect"
import type { SqlError } from "effect/sql"
import { type Found, type PlacementRecord, ShardRecord } from "../placement/guard.ts"

/** What a database holds, and which version of it: another one after each change of the record. */
export interface Seen extends Pick<Found, "record" | "isEmpty"> {
  readonly version: string
}

export const unreachable: Seen = { record: "unreachable", isEmpty: false, version: "" }

const decodeRecord = Schema.decodeUnknownOption(ShardRecord)

export const readRecord = (sql: PgClient): Effect.Effect<Seen, SqlError.SqlError> =>
  Effect.map(
    sql<{ isEmpty: boolean; version: string }>`
      select name, state, placement, xmin::text as version,
        case state when 'pending' then ${nothingStored(sql)} else false end as "isEmpty"
      from shard`,
    ([row]): Seen =>
      row === undefined
        ? { record: undefined, isEmpty: false, version: "" }
        : { ...row, record: Option.getOrElse(decodeRecord(row), () => "unreadable" as const) },
  )

const nothingStored = (sql: PgClient) =>
  sql.literal("not exists (select from objects) and not exists (select from log_entries)")

/**
 * Begins a first start: where there is no record, or in place of the one of a start that never completed. Of two workers
 * that differ, the later one finds the other's record when it looks again.
 */
export const recordPending = (sql: PgClient, name: string, placement: PlacementRecord, seen: Seen) =>
  seen.record === undefined
    ? sql`
        insert into shard (name, state, placement) values (${name}, 'pending', ${sql.json(placement)})
        on conflict do nothing`
    : sql`
        update shard set name = ${name}, placement = ${sql.json(placement)}
        where state = 'pending' and xmin::text = ${seen.version} and ${nothingStored(sql)}`

/** Completes a first start; true where the record still was the one that was seen. */
export const recordReady = (sql: PgClient, { version }: Seen): Effect.Effect<boolean, SqlError.SqlError> =>
  Effect.map(
    sql`update shard set state = 'ready' where state = 'pending' and xmin::text = ${version} returning name`,
    (rows) => rows.length > 0,
  )

/** The same whatever start the pending record is of: when another database of this placement is ready, it is decided. */
export const recordDecided = (
  sql: PgClient,
  name: string,
  placement: PlacementRecord,
): Effect.Effect<boolean, SqlError.SqlError> =>
  Effect.map(
    sql`
      update shard set state = 'ready', name = ${name}, placement = ${sql.json(placement)}
      where state = 'pending' and ${nothingStored(sql)}
      returning name`,
    (rows) => rows.length > 0,
  )
