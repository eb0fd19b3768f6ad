/** First starts that are mistaken, or at odds with each other, and what becomes of them. */
import { assert, layer } from "@effect/vitest"
import { Effect, Exit } from "effect"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, poolOn, twoShards } from "./livePostgres.ts"
import { entry, freshId } from "./shardPoolContract.ts"

layer(TestPostgres.layer(2), { excludeTestServices: true, timeout: "60 seconds" })("first start", (it) => {
  it.effect("two shards at one database are refused; the corrected list starts", () =>
    Effect.gen(function* () {
      const [one, other] = (yield* twoShards).map(({ settings }) => settings)
      const mistaken = [
        { ...one!, name: "h1" },
        { ...one!, name: "h1:5432" },
      ]
      const error = yield* Effect.flip(poolOn(mistaken))
      assert.strictEqual(error._tag, "PlacementMismatch")
      assert.include(error.message, "they are one database or copies of it")
      const corrected = [
        { ...one!, name: "h1" },
        { ...other!, name: "h2" },
      ]
      const pool = yield* poolOn(corrected)
      assert.isTrue((yield* pool.health).every(({ ok }) => ok))
      for (const [index, shard] of corrected.entries()) {
        const rows = yield* (yield* clientOf(
          shard,
        ))`select name, state, placement->'shards'->1->>'name' as second from shard`
        assert.deepStrictEqual(rows, [{ name: ["h1", "h2"][index], state: "ready", second: "h2" }])
      }
      // Now something can be stored, and nothing gives way any more.
      yield* pool.append("h1", [entry(freshId(), 1)])
      assert.strictEqual((yield* Effect.flip(poolOn([{ ...one!, name: "h3" }, other!])))._tag, "PlacementMismatch")
    }).pipe(Effect.scoped),
  )

  it.effect("a record of a start that never completed stays where something is stored", () =>
    Effect.gen(function* () {
      const [one, other] = (yield* twoShards).map(({ settings }) => settings)
      yield* Effect.flip(poolOn([one!, { ...one!, name: "c" }]))
      const sql = yield* clientOf(one!)
      yield* sql`insert into objects values (7, 1, 1)`
      assert.strictEqual((yield* Effect.flip(poolOn([one!, other!])))._tag, "PlacementMismatch")
      yield* sql`delete from objects`
      yield* poolOn([one!, other!])
    }).pipe(Effect.scoped),
  )

  it.effect("of placements that begin at once one is taken, and the others are refused", () =>
    Effect.gen(function* () {
      for (let round = 0; round < 2; round++) {
        const shards = (yield* twoShards).map(({ settings }) => settings)
        const lists = [1, 2, 1, 2].map((weight, index) => {
          const list = [shards[0]!, { ...shards[1]!, weight }]
          return index < 2 ? list : list.toReversed()
        })
        const exits = yield* Effect.forEach(lists, (list) => Effect.exit(poolOn(list)), { concurrency: "unbounded" })
        assert.lengthOf(exits.filter(Exit.isSuccess), 1, JSON.stringify(exits))
      }
    }).pipe(Effect.scoped),
  )
})
