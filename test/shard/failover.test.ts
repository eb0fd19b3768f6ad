/**
 * Servers that cannot write for a while, or are not there any more: no session of that time is used afterwards, the shard
 * serves again by itself, and health says all along what is possible.
 */
import { assert, layer } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import type { SqlClient } from "effect/sql"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import type { BatchRejected, ReadRejected, ShardUnavailable } from "../../src/shard/ShardPool.ts"
import { makeProxy } from "../../bench/servers/TcpProxy.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, oneShard, poolOn } from "./livePostgres.ts"
import { entry, everything, freshId } from "./shardPoolContract.ts"
import { startStandby } from "./standby.ts"

/** A pool on one shard, which has been used, reached through a proxy; and a client past both. */
const started = Effect.gen(function* () {
  const shard = yield* oneShard
  const proxy = yield* makeProxy(shard.port)
  const pool = yield* poolOn([{ ...shard, port: proxy.port }])
  const id = freshId()
  let seq = 0
  const append = Effect.suspend(() => pool.append("a", [entry(id, ++seq)]))
  const read = pool.readPage("a", everything(id))
  const health = Effect.map(pool.health, ([at]) => at!)
  yield* append
  yield* read
  assert.isTrue((yield* health).ok)
  return { append, health, proxy, read, shard, sql: yield* clientOf(shard) }
})

/** Why an operation is not possible. */
const refusal = (operation: Effect.Effect<unknown, ShardUnavailable | BatchRejected | ReadRejected>) =>
  Effect.match(operation, {
    onFailure: (error) => (error._tag === "BatchRejected" ? error.sqlState : error.reason),
    onSuccess: () => "none",
  })

/** Polls, as lanes and health do. */
const patiently = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(Effect.retry(Schedule.spaced("50 millis")), Effect.timeout("10 seconds"))

const until = <A, E, R>(effect: Effect.Effect<A, E, R>, is: (found: A) => boolean) =>
  effect.pipe(Effect.repeat({ until: is, schedule: Schedule.spaced("50 millis") }), Effect.timeout("10 seconds"))

const endSessions = (sql: SqlClient.SqlClient) => sql`
  select pg_terminate_backend(pid) from pg_stat_activity
  where datname = current_database() and application_name = 'objectlog'`

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("failover", (it) => {
  it.effect("a server that is read-only under its sessions", () =>
    Effect.gen(function* () {
      const { append, health, read } = yield* started
      const server = (yield* PostgresServers).shards[0]!
      const setReadOnly = (value: string) =>
        onShard(server, (sql) =>
          Effect.gen(function* () {
            yield* sql`alter system set default_transaction_read_only = ${sql.literal(value)}`
            yield* sql`select pg_reload_conf()`
            yield* until(
              sql<{ now: string }>`select current_setting('default_transaction_read_only') as now`,
              ([row]) => row!.now === value,
            )
          }),
        )
      yield* setReadOnly("on")
      yield* Effect.ensuring(
        Effect.gen(function* () {
          // First by health, on the idle session, and then by an append, on a new one.
          assert.deepInclude(yield* until(health, ({ ok }) => !ok), { reason: "25006, the database is read-only" })
          assert.strictEqual(yield* refusal(append), "25006")
          assert.lengthOf(yield* read, 1)
        }),
        Effect.orDie(setReadOnly("off")),
      )
      yield* append
      assert.isTrue((yield* health).ok)
    }).pipe(Effect.scoped),
  )

  it.effect("a server that is read-only for an append before health looks", () =>
    Effect.gen(function* () {
      const { append, health, shard, sql } = yield* started
      yield* sql`alter role current_user set default_transaction_read_only = on`
      yield* Effect.ensuring(
        Effect.gen(function* () {
          yield* endSessions(sql)
          yield* until(refusal(append), (reason) => reason === "25006")
        }),
        Effect.orDie(
          sql.withTransaction(
            Effect.andThen(
              sql`set transaction read write`,
              sql`alter role current_user reset default_transaction_read_only`,
            ),
          ),
        ),
      )
      assert.isTrue((yield* health).ok)
      yield* append
      assert.strictEqual(shard.name, "a")
    }).pipe(Effect.scoped),
  )

  it.effect("an address that leads to a standby, and back", () =>
    Effect.gen(function* () {
      const { append, health, proxy, read, shard } = yield* started
      const server = (yield* PostgresServers).shards[0]!
      const standby = yield* startStandby(server)
      proxy.lead(standby)
      // The server was stopped: all sessions ended. What the standby has may be old, so it is not read from either.
      for (const operation of [append, read]) {
        yield* until(refusal(operation), (reason) => reason === "25006")
      }
      assert.deepInclude(yield* health, { ok: false, reason: "25006, the server is a standby" })
      proxy.lead(shard.port)
      yield* patiently(append)
      assert.lengthOf(yield* read, 2)
      assert.isTrue((yield* health).ok)
    }).pipe(Effect.scoped),
  )

  it.effect("sessions that are ended: the next operation fails at most once", () =>
    Effect.gen(function* () {
      const { append, health, read, sql } = yield* started
      yield* endSessions(sql)
      yield* Effect.retry(append, { times: 1 })
      yield* read
      assert.isTrue((yield* health).ok)
    }).pipe(Effect.scoped),
  )

  it.effect(
    "a server that vanished without a word while nothing was asked: health finds it, and the next append does not wait",
    () =>
      Effect.gen(function* () {
        const { append, health, proxy, read } = yield* started
        proxy.set({ kind: "client half-open" })
        // New connections get through, as to the successor under the same address; the sessions hear of nothing.
        proxy.set({ kind: "open" })
        assert.deepInclude(yield* health, { ok: false, reason: "timeout" })
        assert.isTrue((yield* health).ok)
        yield* Effect.timeout(append, "10 seconds")
        yield* Effect.timeout(read, "10 seconds")
      }).pipe(Effect.scoped),
  )

  it.effect("a session that lost its settings is not used", () =>
    Effect.gen(function* () {
      const { append, health, sql } = yield* started
      yield* sql`
        create function forget() returns trigger language plpgsql as $$ begin discard plans; reset all; return null; end $$`
      yield* sql`create trigger forget after update on objects execute function forget()`
      yield* append
      yield* sql`drop trigger forget on objects`
      const found = yield* health
      assert.isTrue(!found.ok && found.reason!.startsWith("settings, the session was not kept"), found.reason)
      yield* patiently(append)
      assert.isTrue((yield* health).ok)
    }).pipe(Effect.scoped),
  )

  it.effect("an address that leads to the database of another shard", () =>
    Effect.gen(function* () {
      const { append, health, sql } = yield* started
      yield* sql`update shard set name = 'b'`
      yield* endSessions(sql)
      yield* until(refusal(append), (reason) => reason === "placement")
      assert.isTrue(!(yield* health).ok)
      yield* sql`update shard set name = 'a'`
      yield* append
      assert.isTrue((yield* health).ok)
    }).pipe(Effect.scoped),
  )
})
