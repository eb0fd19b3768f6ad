/** A pooler between worker and database: one that keeps sessions is used, with our settings; another one is refused. */
import { assert, layer } from "@effect/vitest"
import { Effect } from "effect"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, oneShard, poolOn } from "./livePostgres.ts"
import { makePooler } from "./Pooler.ts"
import { entry, everything, freshId } from "./shardPoolContract.ts"

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("pooler", (it) => {
  it.effect("in session mode serves, with the settings that appends and reads rely on", () =>
    Effect.gen(function* () {
      const shard = yield* oneShard
      const { port } = yield* makePooler(shard.port, "session")
      const pool = yield* poolOn([{ ...shard, port }])
      const sql = yield* clientOf(shard)
      // Each insert tells what its session is set to.
      yield* sql`create table seen (lock text, statement text, idle text)`
      yield* sql`
        create function tell() returns trigger language plpgsql as $$ begin
          insert into seen select current_setting('lock_timeout'), current_setting('statement_timeout'),
            current_setting('idle_in_transaction_session_timeout');
          return new; end $$`
      yield* sql`create trigger tell before insert on log_entries for each row execute function tell()`
      const id = freshId()
      yield* pool.append("a", [entry(id, 1)])
      assert.lengthOf(yield* pool.readPage("a", everything(id)), 1)
      assert.isTrue((yield* pool.health)[0]!.ok)
      assert.deepStrictEqual(yield* sql`select * from seen`, [{ lock: "5s", statement: "30s", idle: "10s" }])
    }).pipe(Effect.scoped),
  )

  it.effect("in transaction mode is recognised at the start, and the way out is said", () =>
    Effect.gen(function* () {
      const shard = yield* oneShard
      const { port } = yield* makePooler(shard.port, "transaction")
      const error = yield* Effect.flip(poolOn([{ ...shard, port }]))
      assert.strictEqual(error._tag, "ShardUnsuitable")
      assert.strictEqual(
        error.message,
        `shard a at 127.0.0.1:${port} cannot be used through this pooler: the session was not kept between two ` +
          `statements: a pooler must keep a session to one connection (pool_mode = session)`,
      )
      assert.lengthOf(yield* (yield* clientOf(shard))`select 1 from pg_class where relname = 'log_entries'`, 0)
    }).pipe(Effect.scoped),
  )
})
