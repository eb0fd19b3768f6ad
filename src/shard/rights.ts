/** The rights that a worker needs in a shard's database, and whether it has them. docs/operating.md has them as grants. */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { Effect } from "effect"
import type { SqlError } from "effect/sql"
import { withSqlState } from "./transient.ts"

const needed = [
  ["select", "objects"],
  ["insert", "objects"],
  // Also to lock a row.
  ["update", "objects"],
  ["select", "log_entries"],
  ["insert", "log_entries"],
  // To look, at each connection, whether this is still the same shard.
  ["select", "shard"],
  ["select", "objectlog_migrations"],
] as const

/** Fails, as an operation without them would, where one is missing. */
export const checkRights = (sql: PgClient): Effect.Effect<void, SqlError.SqlError> =>
  Effect.flatMap(
    sql<{ missing: string }>`
      select privilege || ' on ' || relation as missing
      from unnest(${needed.map(([privilege]) => privilege)}::text[], ${needed.map(([, relation]) => relation)}::text[])
        as needed (privilege, relation)
      where not has_table_privilege(relation, privilege)`,
    (rows) =>
      rows.length === 0
        ? Effect.void
        : Effect.fail(withSqlState("42501", `missing: ${rows.map(({ missing }) => missing).join(", ")}`)),
  )
