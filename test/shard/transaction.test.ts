/** Pipelined transactions on a real server: in order, rolled back, and given up where the other end vanished without a word. */
import { PgClient } from "@effect/sql-pg"
import { assert, layer } from "@effect/vitest"
import { Effect, Fiber, Schedule } from "effect"
import { Reactivity } from "effect/reactivity"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { sessionsOfShard } from "../../src/shard/sessions.ts"
import { type InTransaction, makeTransactions, pipelined } from "../../src/shard/transaction.ts"
import { makeProxy } from "../../bench/servers/TcpProxy.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"

const theShard = Effect.map(PostgresServers, ({ shards }) => shards[0]!)

/** On the server itself, or on what is in front of it. */
const transactions = Effect.fnUntraced(function* (port?: number) {
  const shard = yield* theShard
  const { database, host, password, user: username } = shard
  const settings = { host, username, password, database, applicationName: "transactions" }
  const connect = PgClient.makeClient({ ...settings, port: port ?? shard.port, multiplex: true }).pipe(
    Effect.map((sql) => ({ sql, isFit: Effect.void })),
    Effect.provide(Reactivity.layer),
  )
  return makeTransactions(yield* sessionsOfShard(() => undefined)(connect, 5))
})

const insert = (inTransaction: InTransaction, n: number) =>
  inTransaction(({ begin, commit, sql }) =>
    Effect.andThen(begin, pipelined([sql`insert into slow values (${n})`, commit])),
  )

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("transaction", (it) => {
  it.effect("what is sent at once is run in its order, inside the transaction, also side by side with others", () =>
    Effect.gen(function* () {
      const inTransaction = yield* transactions()
      const one = inTransaction(({ begin, commit, sql }) =>
        Effect.gen(function* () {
          const xid = sql<{ xid: string }>`select pg_current_xact_id()::text as xid`
          const [, first, second] = yield* pipelined([begin, xid, xid])
          const [third] = yield* pipelined([xid, commit])
          return [first, second, third].map((rows) => rows[0]!.xid)
        }),
      )
      const all = yield* Effect.forEach(Array.from({ length: 200 }), () => one, { concurrency: 5 })
      for (const [first, second, third] of all) assert.deepStrictEqual([second, third], [first, first])
      assert.strictEqual(new Set(all.map(([xid]) => xid)).size, 200)
      const connections = yield* onShard(
        yield* theShard,
        (sql) => sql`select 1 from pg_stat_activity where application_name = 'transactions'`,
      )
      assert.lengthOf(connections, 5)
    }).pipe(Effect.scoped),
  )

  it.effect("one that fails leaves nothing, and its connection is used again", () =>
    Effect.gen(function* () {
      const inTransaction = yield* transactions()
      yield* onShard(yield* theShard, (sql) => sql`create table failing (n int primary key)`)
      const pid = inTransaction(({ begin, commit, sql }) =>
        Effect.gen(function* () {
          const [, rows] = yield* pipelined([begin, sql<{ pid: number }>`select pg_backend_pid() as pid`, commit])
          return rows[0]!.pid
        }),
      )
      const before = yield* pid
      const error = yield* Effect.flip(
        inTransaction(({ begin, commit, sql }) =>
          pipelined([begin, sql`insert into failing values (1)`, sql`insert into failing values (1)`, commit]),
        ),
      )
      assert.include(String(error.reason.cause), "duplicate key")
      assert.strictEqual(yield* pid, before)
      assert.lengthOf(yield* onShard(yield* theShard, (sql) => sql`select n from failing`), 0)
    }).pipe(Effect.scoped),
  )

  it.effect("one that hangs in its COMMIT can be given up, and its connection is not used again", () =>
    Effect.gen(function* () {
      const shard = yield* theShard
      const proxy = yield* makeProxy(shard.port)
      const inTransaction = yield* transactions(proxy.port)
      yield* onShard(shard, (sql) =>
        Effect.gen(function* () {
          yield* sql`create table slow (n bigint)`
          yield* sql`create function wait() returns trigger language plpgsql as
            $$ begin if new.n = 1 then perform pg_sleep(3); end if; return null; end $$`
          // Deferred: it is the COMMIT that takes its time.
          yield* sql`create constraint trigger wait after insert on slow deferrable initially deferred
            for each row execute function wait()`
        }),
      )
      const hanging = yield* Effect.forkChild(insert(inTransaction, 1))
      yield* onShard(shard, (sql) =>
        sql`select 1 from pg_stat_activity where application_name = 'transactions' and query = 'COMMIT'
          and state = 'active'`.pipe(
          Effect.repeat({ until: (rows) => rows.length > 0, schedule: Schedule.spaced("20 millis") }),
        ),
      )
      proxy.set({ kind: "client half-open" })
      // New connections get through; the one there is hears of nothing.
      proxy.set({ kind: "open" })
      yield* Fiber.interrupt(hanging)

      yield* insert(inTransaction, 2)
      const rows = yield* onShard(shard, (sql) => sql<{ n: bigint }>`select n from slow where n = 2`)
      assert.lengthOf(rows, 1)
    }).pipe(Effect.scoped),
  )
})
