/**
 * The tables of a shard, as an append-only list of migrations: a released one never changes, new ones are added below.
 *
 * Not with Effect's own Migrator: where it may not create its table it looks again for it, in the transaction that has
 * failed, and what comes out is that failure and not the first one.
 */
import { Effect } from "effect"
import type { SqlClient, SqlError } from "effect/sql"
import { ShardUnsuitable } from "./ShardUnsuitable.ts"
import { defectAsFailure, sqlStateOf, uniqueViolation, withSqlState } from "./transient.ts"

type Migration = (sql: SqlClient.SqlClient) => Effect.Effect<unknown, SqlError.SqlError>

const createObjects: Migration = Effect.fnUntraced(function* (sql) {
  // Each append updates the row; a fill factor below 100 leaves room for the new version in the same page (HOT).
  yield* sql`
    create table objects (
      id bigint primary key,
      entries bigint not null,
      last_timestamp bigint not null
    ) with (fillfactor = 85)`
})

const createLogEntries: Migration = Effect.fnUntraced(function* (sql) {
  yield* sql`
    create table log_entries (
      object_id bigint not null,
      timestamp bigint not null,
      seq bigint not null,
      position bigint not null,
      log text not null,
      escaped boolean not null,
      message_id text,
      primary key (object_id, timestamp, seq),
      unique (object_id, position)
    )`
  yield* sql`
    create unique index log_entries_message_id on log_entries (object_id, message_id) where message_id is not null`
})

const createShard: Migration = Effect.fnUntraced(function* (sql) {
  yield* sql`
    create table shard (
      one_row boolean primary key default true check (one_row),
      name text not null,
      state text not null,
      placement jsonb not null
    )`
})

/**
 * What tells message ids apart are their bytes. In the order of the database's own collation, which a new version of the
 * operating system may change, the index no longer finds what is in it.
 */
const compareMessageIdsByBytes: Migration = Effect.fnUntraced(function* (sql) {
  // Without its index, the column changes at once; what takes its time is to make the index anew.
  yield* sql`drop index log_entries_message_id`
  yield* sql`alter table log_entries alter column message_id type text collate "C"`
  const createIndex = sql`
    create unique index log_entries_message_id on log_entries (object_id, message_id) where message_id is not null`
  yield* Effect.catchIf(
    sql.withTransaction(createIndex),
    (error) => sqlStateOf(error) === uniqueViolation,
    () => Effect.andThen(forgetRepeatedMessageIds(sql), createIndex),
  )
})

/** Of entries that such an index let in twice, the first one keeps the id: with its place a repeated append is answered. */
const forgetRepeatedMessageIds: Migration = (sql) => sql`
  update log_entries set message_id = null
  from (
    select object_id, position, row_number() over (partition by object_id, message_id order by position) as number
    from log_entries where message_id is not null
  ) as repeated
  where repeated.number > 1
    and log_entries.object_id = repeated.object_id and log_entries.position = repeated.position`

const migrations: ReadonlyArray<readonly [name: string, run: Migration]> = [
  ["create_objects", createObjects],
  ["create_log_entries", createLogEntries],
  ["create_shard", createShard],
  ["compare_message_ids_by_bytes", compareMessageIdsByBytes],
]

/** The newest schema version: the number of the last migration. */
export const schemaVersion = migrations.length

const table = "objectlog_migrations"

/** Any number will do, as long as every worker uses the same. */
const advisoryLock = 7_306_085_897_111_914_343n

/** How a message names the shard. */
interface Place {
  readonly name: string
  readonly address: string
}

/**
 * Brings the schema up to date. Workers that start at the same moment wait for each other on an advisory lock; without
 * it they race, since even `create table if not exists` fails when another session creates the table meanwhile.
 */
export const migrate = Effect.fnUntraced(
  function* (sql: SqlClient.SqlClient, { name }: Place, target = schemaVersion) {
    const schema = yield* schemaOf(sql)
    const before = yield* foundVersion(sql)
    if (before >= target) return
    if (!schema.creates) {
      return yield* withSqlState(
        "42501",
        `role ${schema.role} may not create tables in schema ${schema.name}: ` +
          `grant create on schema ${schema.name} to it, or run "objectlog migrate" as a role that may`,
      )
    }
    yield* Effect.logInfo(`shard ${name}: migrates its tables from version ${before} to ${target}`)
    yield* sql.withTransaction(
      Effect.gen(function* () {
        // Not the few seconds of an append: another worker's migration may take its time.
        yield* sql`set local lock_timeout = '10min'`
        yield* sql`set local statement_timeout = 0`
        // Who changes a whole table reads all of it.
        yield* sql`set local enable_seqscan = on`
        yield* sql`set local enable_sort = on`
        yield* sql`select pg_advisory_xact_lock(${advisoryLock})`
        yield* sql`
          create table if not exists ${sql(table)} (
            migration_id integer primary key,
            created_at timestamptz not null default now(),
            name text not null
          )`
        // Another worker may have done it meanwhile.
        const found = yield* latestMigration(sql)
        for (const [index, [migration, run]] of migrations.entries()) {
          const version = index + 1
          if (version <= found || version > target) continue
          yield* run(sql)
          yield* sql`insert into ${sql(table)} (migration_id, name) values (${version}, ${migration})`
        }
      }),
    )
  },
  (self) => defectAsFailure(self),
)

/** Fails where `migrate` would have something to do. */
export const checkMigrated = Effect.fnUntraced(function* (sql: SqlClient.SqlClient, { address, name }: Place) {
  const schema = yield* schemaOf(sql)
  const found = yield* foundVersion(sql)
  if (found >= schemaVersion) return
  return yield* new ShardUnsuitable({
    shard: name,
    address,
    reason: "schema",
    problem:
      `has version ${found} of the tables in schema ${schema.name}, ${schemaVersion} is needed: ` +
      `run "objectlog migrate", or start once with POSTGRES_AUTOMIGRATE=true`,
  })
})

/** Where tables without a schema are, and are created. */
const schemaOf = Effect.fnUntraced(function* (sql: SqlClient.SqlClient) {
  const [row] = yield* sql<{ role: string; name: string | null; path: string; creates: boolean }>`
    select
      current_user::text as role,
      current_schema()::text as name,
      current_setting('search_path') as path,
      has_schema_privilege(current_schema(), 'create') as creates`
  const { creates, name, path, role } = row!
  if (name !== null) return { creates, name, role }
  return yield* withSqlState(
    "3F000",
    `role ${role} finds no schema of its search_path (${path}): create one of them, or grant usage on it`,
  )
})

/** The version of the schema that is there; 0 without one. */
const foundVersion = (sql: SqlClient.SqlClient): Effect.Effect<number, SqlError.SqlError> =>
  Effect.flatMap(sql`select 1 where to_regclass(${table}) is not null`, (rows) =>
    rows.length > 0 ? latestMigration(sql) : Effect.succeed(0),
  )

const latestMigration = (sql: SqlClient.SqlClient): Effect.Effect<number, SqlError.SqlError> =>
  Effect.map(
    sql<{ latest: number }>`select coalesce(max(migration_id), 0) as latest from ${sql(table)}`,
    ([row]) => row!.latest,
  )
