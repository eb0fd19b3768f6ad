/** Is the server one that a shard can be on? */
import { Effect } from "effect"
import type { SqlClient } from "effect/sql"
import { sessionsMax } from "./limits.ts"
import { ShardUnsuitable } from "./ShardUnsuitable.ts"

/** The oldest PostgreSQL that is supported. */
const postgresMin = 15

export const checkServer = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  { address, name }: { readonly name: string; readonly address: string },
) {
  // A limit that is not set is -1.
  const [row] = yield* sql<{ number: number; version: string; encoding: string; sessions: number }>`
    select
      current_setting('server_version_num')::int as number,
      current_setting('server_version') as version,
      current_setting('server_encoding') as encoding,
      least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
          - coalesce(current_setting('reserved_connections', true), '0')::int,
        nullif(rolconnlimit, -1),
        nullif(datconnlimit, -1)
      ) as sessions
    from pg_roles, pg_database
    where rolname = session_user and datname = current_database()`
  const { encoding, number, sessions, version } = row!
  if (number < postgresMin * 10_000) {
    const problem = `runs PostgreSQL ${version}: ${postgresMin} or newer is needed`
    return yield* new ShardUnsuitable({ shard: name, address, reason: "version", problem })
  }
  if (encoding !== "UTF8") {
    const problem =
      `has a database in the encoding ${encoding}: UTF8 is needed, ` +
      `as by create database … encoding 'UTF8' locale 'C' template template0`
    return yield* new ShardUnsuitable({ shard: name, address, reason: "encoding", problem })
  }
  if (sessions < sessionsMax) {
    yield* Effect.logWarning(
      `shard ${name}: at most ${sessions} sessions are allowed there, by max_connections or a limit of the role or database; ` +
        `each worker opens up to ${sessionsMax}`,
    )
  }
})
