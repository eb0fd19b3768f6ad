/** Statements of a test on a shard's database, past the service. */
import { PgClient } from "@effect/sql-pg"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import type { EmbeddedShard } from "../../src/embedded/PostgresServers.ts"

/** Runs them on a connection of their own. */
export const onShard = <A, E, R>(shard: EmbeddedShard, run: (sql: SqlClient.SqlClient) => Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, run).pipe(
    Effect.provide(
      PgClient.layer({
        host: shard.host,
        port: shard.port,
        username: shard.user,
        password: shard.password,
        database: shard.database,
        maxConnections: 1,
      }),
    ),
  )
