/** What a lane gives to its shard: how much at once, and what it says of each append. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Scope } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { layerMemory as metricsMemory } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"

const worker = runWorker({ responseTopic: "response", debug: false })

/** Two shards, of which all goes to the first; what was said of each log that reached it is noted. */
const world = (redelivered: Map<string, boolean>) => {
  const shards = shardsMemory(["a", "b"])
  const noting = Layer.effect(
    ShardPool,
    Effect.map(ShardPool, (pool) => ({
      ...pool,
      append: (shard, batch) =>
        Effect.suspend(() => {
          for (const entry of batch) redelivered.set(entry.log, entry.redelivered)
          return pool.append(shard, batch)
        }),
    })),
  ).pipe(Layer.provideMerge(shards))
  return Layer.mergeAll(
    brokerMemory({}),
    HashRing.layerFixed([{ name: "a" }, { name: "b" }], () => 0),
    noting,
    metricsMemory,
  )
}

const publish = (log: string, headers?: Readonly<Record<string, string>>) =>
  MemoryBroker.use((broker) => broker.publishAppend(JSON.stringify({ id: 1, log }), headers))

describe("a batch", () => {
  it.effect(
    "says of each append whether it may be stored already: after a redelivery, and when it is tried again",
    () => {
      const redelivered = new Map<string, boolean>()
      return Effect.gen(function* () {
        const broker = yield* MemoryBroker
        const shards = yield* MemoryShards
        const first = yield* Scope.make()
        yield* Effect.forkIn(Effect.scoped(worker), first)
        yield* publish("fresh")
        yield* broker.nextEvent
        yield* shards.setState("a", "hang")
        yield* publish("given back")
        yield* shards.awaitUse("a")
        assert.isFalse(redelivered.get("given back"))
        // It finishes what is under way, for some seconds at most.
        const closing = yield* Effect.forkChild(Scope.close(first, Exit.void))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(closing)
        yield* shards.setState("a", "up")
        yield* Effect.forkScoped(worker)
        yield* TestClock.adjust("1 minute")
        yield* broker.nextEvent
        yield* shards.reject("a", (log) => log === "parked")
        const refused = yield* publish("parked")
        yield* broker.nextEvent
        assert.isFalse(redelivered.get("parked"))
        yield* shards.reject("a", undefined)
        yield* broker.retry(refused, "1")
        yield* broker.nextEvent
        assert.deepStrictEqual(Object.fromEntries(redelivered), { fresh: false, "given back": true, parked: true })
      }).pipe(Effect.scoped, Effect.provide(world(redelivered)))
    },
  )

  it.effect("holds no more than it may, also where parked and fresh appends wait together", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      yield* Effect.forkScoped(worker)
      yield* shards.setState("a", "down")
      const parked = 4 * limits.batchEntriesMax
      for (let i = 0; i < parked; i++) yield* publish(`parked ${i}`)
      yield* TestClock.adjust("10 seconds")
      yield* shards.setState("a", "up")
      const isParked = broker.parkedFor("appends", "a") >= limits.batchEntriesMax
      // Slow enough that both queues are full when it has ended.
      yield* shards.setDelay("a", 1_000)
      for (let i = 0; i < parked; i++) yield* publish(`fresh ${i}`)
      yield* TestClock.adjust("30 seconds")
      assert.isTrue(isParked)
      const batches = yield* shards.batches("a")
      assert.strictEqual(
        batches.reduce((sum, size) => sum + size, 0),
        2 * parked,
      )
      assert.isAbove(Math.max(...batches), limits.batchEntriesMax / 2)
      assert.isAtMost(Math.max(...batches), 1.5 * limits.batchEntriesMax)
    }).pipe(Effect.scoped, Effect.provide(world(new Map()))),
  )

  it.effect("has no message id that an index could not hold", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* Effect.forkScoped(worker)
      yield* publish("at the limit", { "Nats-Msg-Id": "m".repeat(1_024) })
      assert.include((yield* broker.nextEvent).payload, '"status":"ok"')
      yield* publish("beyond", { "Nats-Msg-Id": "m".repeat(1_025) })
      assert.include((yield* broker.nextEvent).payload, '"code":"invalid_message"')
      assert.lengthOf(broker.deadLetters(), 1)
    }).pipe(Effect.scoped, Effect.provide(world(new Map()))),
  )
})
