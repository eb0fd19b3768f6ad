/**
 * The tables of a shard, as an append-only list of migrations: a released one never changes, new ones are added below.
 */
import { Effect, Option, Schema } from "effect"
import { Migrator, SqlClient, type SqlError } from "effect/sql"
import { defectAsFailure } from "./transient.ts"

/** The oldest PostgreSQL that is supported. */
export const postgresMin = 15

/** The server is older than what is supported. */
export class PostgresTooOld extends Schema.TaggedError<PostgresTooOld>()("PostgresTooOld", {
  shard: Schema.String,
  address: Schema.String,
  version: Schema.String,
}) {
  override get message(): string {
    return `shard ${this.shard} at ${this.address} runs PostgreSQL ${this.version}: ${postgresMin} or newer is needed`
  }
}

/** Tables are missing or older than this objectlog, and it may not migrate them itself. */
export class SchemaOutdated extends Schema.TaggedError<SchemaOutdated>()("SchemaOutdated", {
  shard: Schema.String,
  address: Schema.String,
  found: Schema.Int,
  needed: Schema.Int,
}) {
  override get message(): string {
    return (
      `shard ${this.shard} at ${this.address} has schema version ${this.found}, ${this.needed} is needed: ` +
      `start once with POSTGRES_AUTOMIGRATE=true`
    )
  }
}

const createObjects = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  // Each append updates the row; a fill factor below 100 leaves room for the new version in the same page (HOT).
  yield* sql`
    create table objects (
      id bigint primary key,
      entries bigint not null,
      last_timestamp bigint not null
    ) with (fillfactor = 85)`
})

const createLogEntries = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
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

const createShard = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    create table shard (
      one_row boolean primary key default true check (one_row),
      name text not null,
      state text not null,
      placement jsonb not null
    )`
})

const migrations = {
  "0001_create_objects": createObjects,
  "0002_create_log_entries": createLogEntries,
  "0003_create_shard": createShard,
}

/** The newest schema version: the number of the last migration. */
export const schemaVersion = Object.keys(migrations).length

const table = "objectlog_migrations"

/** Any number will do, as long as every worker uses the same. */
const advisoryLock = 7_306_085_897_111_914_343n

const runMigrations = Migrator.make({})({ loader: Migrator.fromRecord(migrations), table })

/**
 * Brings the schema up to date. Workers that start at the same moment wait for each other on an advisory lock; without
 * it they race, since even `create table if not exists` fails when another session creates the table meanwhile.
 */
export const migrate = Effect.fnUntraced(
  function* (sql: SqlClient.SqlClient) {
    if ((yield* foundVersion(sql)) >= schemaVersion) return
    yield* sql.withTransaction(
      Effect.gen(function* () {
        // Not the few seconds of an append: another worker's migration may take its time.
        yield* sql`set local lock_timeout = '10min'`
        yield* sql`set local statement_timeout = 0`
        yield* sql`select pg_advisory_xact_lock(${advisoryLock})`
        // Another worker may have done it meanwhile. Looked up before the migrator does: see `migrationsTableExists`.
        if ((yield* foundVersion(sql)) >= schemaVersion) return
        yield* Effect.provideService(runMigrations, SqlClient.SqlClient, sql)
      }),
    )
  },
  (self) => defectAsFailure(self),
)

/** Fails with `SchemaOutdated` where `migrate` would have something to do. */
export const checkMigrated = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  at: { readonly shard: string; readonly address: string },
) {
  const found = yield* foundVersion(sql)
  if (found < schemaVersion) return yield* new SchemaOutdated({ ...at, found, needed: schemaVersion })
})

/** Fails with `PostgresTooOld` below version 15. */
export const checkServer = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  at: { readonly shard: string; readonly address: string },
) {
  const [row] = yield* sql<{
    number: number
    version: string
  }>`select current_setting('server_version_num')::int as number, current_setting('server_version') as version`
  if (row!.number < postgresMin * 10_000) return yield* new PostgresTooOld({ ...at, version: row!.version })
})

/** The version of the schema that is there; 0 without one. */
const foundVersion = (sql: SqlClient.SqlClient): Effect.Effect<number, SqlError.SqlError> =>
  Effect.flatMap(migrationsTableExists(sql), (exists) => (exists ? latestMigration(sql) : Effect.succeed(0)))

/**
 * From `pg_class` and not by `to_regclass` alone: that answers from the session's catalog cache, which still says "no such
 * table" after the advisory lock was waited for. Reading a relation brings the cache up to date first.
 */
const migrationsTableExists = (sql: SqlClient.SqlClient): Effect.Effect<boolean, SqlError.SqlError> =>
  Effect.map(sql`select 1 as found from pg_class where oid = to_regclass(${table})`, (rows) => rows.length > 0)

const latestMigration = (sql: SqlClient.SqlClient): Effect.Effect<number, SqlError.SqlError> =>
  Effect.map(sql<{ latest: number | null }>`select max(migration_id) as latest from ${sql(table)}`, ([row]) =>
    Option.getOrElse(Option.fromNullishOr(row!.latest), () => 0),
  )
