import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { layerMemory, MemoryShards } from "../../src/shard/Memory.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"
import { count, entry, everything, freshId, shardPoolContract } from "./shardPoolContract.ts"

shardPoolContract("layerMemory", layerMemory(["a", "b"]))

describe("MemoryShards", () => {
  it.effect("takes a shard down, and the others stay up", () =>
    Effect.gen(function* () {
      const pool = yield* ShardPool
      const shards = yield* MemoryShards
      yield* shards.setState("a", "down")
      const error = yield* Effect.flip(pool.append("a", [entry(freshId(), 1)]))
      assert.strictEqual(error._tag, "ShardUnavailable")
      assert.strictEqual((yield* pool.append("b", [entry(freshId(), 1)])).length, 1)
      assert.deepStrictEqual(
        (yield* pool.health).map((at) => at.ok),
        [false, true],
      )
    }).pipe(Effect.provide(layerMemory(["a", "b"]))),
  )

  it.effect("holds operations while it hangs", () =>
    Effect.gen(function* () {
      const pool = yield* ShardPool
      const shards = yield* MemoryShards
      const objectId = freshId()
      yield* shards.setState("a", "hang")
      const fiber = yield* Effect.forkChild(pool.append("a", [entry(objectId, 1)]))
      yield* shards.awaitUse("a")
      assert.deepStrictEqual(pool.usage(), [
        { shard: "a", append: { inUse: 1, waiting: 0 }, read: { inUse: 0, waiting: 0 } },
      ])
      assert.deepStrictEqual(yield* shards.entries("a", objectId), [])
      yield* shards.setState("a", "up")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* shards.entries("a", objectId), yield* pool.readPage("a", everything(objectId)))
      assert.deepStrictEqual(yield* shards.batches("a"), [1])
    }).pipe(Effect.provide(layerMemory(["a"]))),
  )

  it.effect("rejects a whole batch for one log", () =>
    Effect.gen(function* () {
      const pool = yield* ShardPool
      const shards = yield* MemoryShards
      yield* shards.reject("a", (log) => log === "poison")
      const objectId = freshId()
      const error = yield* Effect.flip(pool.append("a", [entry(objectId, 1), entry(objectId, 2, { log: "poison" })]))
      assert.strictEqual(error._tag, "BatchRejected")
      assert.strictEqual(yield* count("a", objectId), 0)
      assert.deepStrictEqual(yield* shards.objects("a"), [])
    }).pipe(Effect.provide(layerMemory(["a"]))),
  )
})
