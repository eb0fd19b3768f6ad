/** From each earlier version of the tables to the newest one; and what a database has to be for that. */
import { assert, layer } from "@effect/vitest"
import { Effect } from "effect"
import { migrate, schemaVersion } from "../../src/shard/migrations.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, oneShard, oneShardWith, poolOn } from "./livePostgres.ts"
import { append, countIn, entry, id } from "./shardPoolContract.ts"

const place = { name: "a", address: "a.db" }

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("migrations", (it) => {
  it.effect("from each earlier version", () =>
    Effect.gen(function* () {
      for (let version = 0; version < schemaVersion; version++) {
        const shard = yield* oneShard
        yield* migrate(yield* clientOf(shard), place, version)
        const pool = yield* poolOn([shard])
        assert.strictEqual((yield* append(pool, "a", [entry(id(1), 1)]))[0]!.position, 1)
      }
    }).pipe(Effect.scoped),
  )

  it.effect("message ids are known again though the order of the database's texts has changed", () =>
    Effect.gen(function* () {
      const shard = yield* oneShardWith("locale_provider icu icu_locale 'en' template template0")
      const ids = Array.from({ length: 400 }, (_, n) => {
        const digits = String(100_000 + n * 211)
        return `${digits.slice(0, n % 6)}-${digits.slice(n % 6)}`
      })
      const insert = (messageId: string, n: number) => `(7, ${n + 1}, ${n + 1}, ${n + 1}, '', false, '${messageId}')`
      const before = yield* clientOf(shard)
      yield* migrate(before, place, 3)
      yield* before`insert into objects values (7, 400, 400)`
      yield* before`insert into log_entries values ${before.literal(ids.map(insert).join(","))}`

      // As a new version of the operating system does: punctuation no longer counts.
      yield* before`update pg_database set datlocale = 'en-u-ka-shifted' where datname = current_database()`
      const after = yield* clientOf(shard)
      yield* after`set enable_seqscan = off`
      yield* after`set enable_sort = off`
      const find = (messageId: string) => after`
        select 1 from log_entries where object_id = 7 and message_id >= ${messageId} and message_id <= ${messageId}
        order by message_id limit 1`
      const found = yield* Effect.forEach(ids, find)
      const lost = ids.filter((_, n) => found[n]!.length === 0)
      assert.isAbove(lost.length, 100)
      // So a repeated id was stored again; two have been so far.
      yield* after`insert into log_entries values ${after.literal(
        lost
          .slice(0, 2)
          .map((each, n) => insert(each, 400 + n))
          .join(","),
      )}`
      yield* after`update objects set entries = 402, last_timestamp = 402`

      const pool = yield* poolOn([shard])
      const placed = yield* append(
        pool,
        "a",
        ids.map((messageId, n) => entry(id(7), 1_000 + n, { messageId })),
      )
      assert.deepStrictEqual(
        placed.map(({ _tag, position }) => ({ _tag, position })),
        ids.map((_, n) => ({ _tag: "Duplicate", position: n + 1 })),
      )
      assert.strictEqual(yield* countIn(pool, "a", id(7)), 402)
    }).pipe(Effect.scoped),
  )

  it.effect("a database that cannot hold every text is refused", () =>
    Effect.gen(function* () {
      for (const encoding of ["LATIN1", "SQL_ASCII"]) {
        const shard = yield* oneShardWith(`encoding '${encoding}' locale 'C' template template0`)
        const error = yield* Effect.flip(poolOn([shard]))
        assert.strictEqual(error._tag, "ShardUnsuitable")
        assert.strictEqual(
          error.message,
          `shard a at 127.0.0.1:${shard.port} has a database in the encoding ${encoding}: UTF8 is needed, ` +
            `as by create database … encoding 'UTF8' locale 'C' template template0`,
        )
      }
    }).pipe(Effect.scoped),
  )
})
