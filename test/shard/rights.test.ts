/** Who may do what: the documented grants suffice for a worker, and each is needed; what is missing is said first. */
import { assert, layer } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import { Reactivity } from "effect/reactivity"
import { readFileSync } from "node:fs"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { placementOf } from "../../src/placement/guard.ts"
import { connectTo } from "../../src/shard/connectSession.ts"
import type { ShardSettings } from "../../src/config/ConfigShards.ts"
import { migrateShards } from "../../src/shard/ShardPoolLive.ts"
import { makeShard, verifyAllNow } from "../../src/shard/verify.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, oneShard, poolOn } from "./livePostgres.ts"
import { countIn, entry, everything, freshId } from "./shardPoolContract.ts"

const operating = readFileSync(new URL("../../docs/operating.md", import.meta.url), "utf8")

const secret = Redacted.make("secret")

/** The grants as docs/operating.md has them, for the schema and the role of this test. */
const documented = [...operating.matchAll(/^grant (.+) on (.+) to worker;$/gm)].map(([, rights, on]) => ({
  rights: rights!.split(", "),
  on: on!.replace("schema public", "schema logs"),
}))

/** A database whose owner keeps the tables in a schema of their own, and a role for workers that may do nothing there. */
const roles = Effect.gen(function* () {
  const shard = yield* oneShard
  const first = yield* clientOf(shard)
  yield* first`alter database ${first(shard.database)} set search_path = logs`
  const sql = yield* clientOf(shard)
  yield* sql`drop role if exists owner, worker`
  yield* sql`create role owner login password ${sql.literal(`'secret'`)}`
  yield* sql`create role worker login password ${sql.literal(`'secret'`)}`
  yield* Effect.addFinalizer(() =>
    Effect.orDie(Effect.andThen(sql`drop owned by owner, worker cascade`, sql`drop role owner, worker`)),
  )
  yield* sql`create schema logs authorization owner`
  const as = (user: string): ShardSettings => ({ ...shard, user, password: secret })
  return { owner: as("owner"), worker: as("worker"), sql }
})

const migrated = (shard: ShardSettings) => migrateShards({ shards: [shard], placement: placementOf([shard]) })

/** Why this shard cannot serve, as a start says it. */
const refusal = (shard: ShardSettings, autoMigrate: boolean) =>
  Effect.gen(function* () {
    const connectFor = yield* connectTo(shard)
    const shards = [makeShard(shard.name, "a.db", connectFor("inspect"))]
    const error = yield* Effect.flip(verifyAllNow({ shards, autoMigrate, placement: placementOf([shard]) }))
    return error.message
  }).pipe(Effect.provide(Reactivity.layer))

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("rights", (it) => {
  it.effect(
    "what docs/operating.md grants suffices for a worker, after the owner has migrated; and each of it is needed",
    () =>
      Effect.gen(function* () {
        const { owner, sql, worker } = yield* roles
        yield* migrated(owner)
        for (const { on, rights } of documented)
          yield* sql`grant ${sql.literal(`${rights.join(", ")} on ${on}`)} to worker`
        const pool = yield* poolOn([worker], false)
        const id = freshId()
        yield* pool.append("a", [entry(id, 1, { messageId: "m" })])
        yield* pool.append("a", [entry(id, 1, { messageId: "m", redelivered: true })])
        assert.lengthOf(yield* pool.readPage("a", everything(id)), 1)
        assert.strictEqual(yield* countIn(pool, "a", id), 1)
        assert.deepStrictEqual(yield* pool.health, [{ shard: "a", ok: true, reason: undefined }])
        for (const { on, rights } of documented) {
          for (const right of rights) {
            for (const relation of on.split(", ")) {
              yield* sql`revoke ${sql.literal(`${right} on ${relation}`)} from worker`
              const [health] = yield* pool.health
              const expected = on === "schema logs" ? "42P01" : `42501, missing: ${right} on ${relation}`
              assert.isTrue(!health!.ok && health!.reason!.startsWith(expected), health!.reason)
              yield* sql`grant ${sql.literal(`${right} on ${relation}`)} to worker`
              assert.isTrue((yield* pool.health)[0]!.ok)
            }
          }
        }
      }).pipe(Effect.scoped),
  )

  it.effect("migrates for another role, again and again, also an older version", () =>
    Effect.gen(function* () {
      const { owner, sql, worker } = yield* roles
      yield* migrated(owner)
      yield* migrated(owner)
      assert.deepStrictEqual(yield* sql`select name, state from logs.shard`, [{ name: "a", state: "ready" }])
      yield* sql`delete from logs.objectlog_migrations where migration_id = 4`
      yield* sql`grant usage on schema logs to worker`
      yield* sql`grant select on all tables in schema logs to worker`
      assert.strictEqual(
        yield* refusal(worker, false),
        "shard a at a.db has version 3 of the tables in schema logs, 4 is needed: " +
          `run "objectlog migrate", or start once with POSTGRES_AUTOMIGRATE=true`,
      )
      yield* migrated(owner)
      yield* poolOn([worker], false)
    }).pipe(Effect.scoped),
  )

  it.effect("the first thing that is missing is said, and what to do", () =>
    Effect.gen(function* () {
      const { owner, sql, worker } = yield* roles
      assert.strictEqual(
        yield* refusal(worker, true),
        "shard a: verify failed (3F000): role worker finds no schema of its search_path (logs): " +
          "create one of them, or grant usage on it",
      )
      yield* sql`grant usage on schema logs to worker`
      assert.strictEqual(
        yield* refusal(worker, true),
        "shard a: verify failed (42501): role worker may not create tables in schema logs: " +
          `grant create on schema logs to it, or run "objectlog migrate" as a role that may (docs/operating.md: Rights)`,
      )
      assert.include(yield* refusal(worker, false), "has version 0 of the tables in schema logs")
      yield* migrated(owner)
      assert.strictEqual(
        yield* refusal(worker, false),
        "shard a: verify failed (42501): permission denied for table objectlog_migrations (docs/operating.md: Rights)",
      )
      yield* sql`delete from logs.objectlog_migrations where migration_id = 4`
      yield* sql`grant create on schema logs to worker`
      yield* sql`grant select, insert on logs.objectlog_migrations to worker`
      assert.strictEqual(
        yield* refusal(worker, true),
        "shard a: verify failed (42501): must be owner of index log_entries_message_id (docs/operating.md: Rights)",
      )
    }).pipe(Effect.scoped),
  )

  it.effect("a database that is read-only at the start", () =>
    Effect.gen(function* () {
      const { owner } = yield* roles
      const server = (yield* PostgresServers).shards[0]!
      yield* onShard(server, (sql) => sql`alter role owner set default_transaction_read_only = on`)
      assert.strictEqual(
        yield* refusal(owner, true),
        "shard a: verify failed (25006): cannot execute CREATE TABLE in a read-only transaction",
      )
    }).pipe(Effect.scoped),
  )
})
