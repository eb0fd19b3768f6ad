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
      yield* shards.setState(0, "down")
      const error = yield* Effect.flip(pool.append(0, [entry(freshId(), 1)]))
      assert.strictEqual(error._tag, "ShardUnavailable")
      assert.strictEqual((yield* pool.append(1, [entry(freshId(), 1)])).length, 1)
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
      yield* shards.setState(0, "hang")
      const fiber = yield* Effect.forkChild(pool.append(0, [entry(objectId, 1)]))
      yield* shards.awaitUse(0)
      assert.deepStrictEqual(pool.usage(), [{ shard: "a", connectionsInUse: 1, waiting: 0 }])
      assert.deepStrictEqual(yield* shards.entries(0, objectId), [])
      yield* shards.setState(0, "up")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* shards.entries(0, objectId), yield* pool.readPage(0, everything(objectId)))
      assert.deepStrictEqual(yield* shards.batches(0), [1])
    }).pipe(Effect.provide(layerMemory(["a"]))),
  )

  it.effect("rejects a whole batch for one log", () =>
    Effect.gen(function* () {
      const pool = yield* ShardPool
      const shards = yield* MemoryShards
      yield* shards.reject(0, (log) => log === "poison")
      const objectId = freshId()
      const error = yield* Effect.flip(pool.append(0, [entry(objectId, 1), entry(objectId, 2, { log: "poison" })]))
      assert.strictEqual(error._tag, "BatchRejected")
      assert.strictEqual(yield* count(0, objectId), 0)
      assert.deepStrictEqual(yield* shards.objects(0), [])
    }).pipe(Effect.provide(layerMemory(["a"]))),
  )
})
