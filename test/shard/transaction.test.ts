/** A transaction on a connection whose other end vanished in the middle of a COMMIT, without a word. */
import { PgClient } from "@effect/sql-pg"
import { assert, layer } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { inTransaction } from "../../src/shard/transaction.ts"
import { makeProxy } from "../chaos/TcpProxy.ts"
import { TestPostgres } from "../embedded/testServers.ts"

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("transaction", (it) => {
  it.effect("one that hangs in its COMMIT can be given up, and its connection is not used again", () =>
    Effect.gen(function* () {
      const shard = (yield* PostgresServers).shards[0]!
      const proxy = yield* makeProxy(shard.port)
      const { database, host, password, user: username } = shard
      const settings = { host, username, password, database, maxConnections: 1 }
      const direct = yield* Layer.build(PgClient.layer({ ...settings, port: shard.port }))
      const proxied = yield* Layer.build(
        PgClient.layer({ ...settings, port: proxy.port, applicationName: "through the proxy" }),
      )
      const insert = (n: number) =>
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          yield* inTransaction(sql)(sql`insert into slow values (${n})`)
        }).pipe(Effect.provideContext(proxied))
      const onServer = <A, E>(run: (sql: SqlClient.SqlClient) => Effect.Effect<A, E>) =>
        Effect.provideContext(Effect.flatMap(SqlClient.SqlClient, run), direct)

      yield* onServer((sql) =>
        Effect.gen(function* () {
          yield* sql`create table slow (n bigint)`
          yield* sql`create function wait() returns trigger language plpgsql as
            $$ begin if new.n = 1 then perform pg_sleep(3); end if; return null; end $$`
          // Deferred: it is the COMMIT that takes its time.
          yield* sql`create constraint trigger wait after insert on slow deferrable initially deferred
            for each row execute function wait()`
        }),
      )
      const hanging = yield* Effect.forkChild(insert(1))
      yield* onServer(
        (sql) => sql`select 1 from pg_stat_activity where application_name = 'through the proxy' and query = 'COMMIT'
          and state = 'active'`,
      ).pipe(Effect.repeat({ until: (rows) => rows.length > 0 }))
      proxy.set({ kind: "client half-open" })
      // New connections get through; the one there is hears of nothing.
      proxy.set({ kind: "open" })
      yield* Fiber.interrupt(hanging)

      yield* insert(2)
      const rows = yield* onServer((sql) => sql<{ n: bigint }>`select n from slow where n = 2`)
      assert.lengthOf(rows, 1)
    }),
  )
})
