/** Shards that are slow and not dead, in memory and under a test's clock: they delay what is theirs, and nothing else. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Logger } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"

const world = Layer.mergeAll(
  brokerMemory(),
  HashRingLive([{ name: "a" }, { name: "b" }]),
  shardsMemory(["a", "b"]),
  metricsMemory,
)

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

const idOf = Effect.fnUntraced(function* (shard: string) {
  const ring = yield* HashRing
  let id = 1
  while (ring.shardOf(ObjectId.make(BigInt(id))) !== shard) id++
  return id
})

const stepMillis = 10

/**
 * Publishes appends of both shards for some seconds, so many in each step; gives the delays of those of shard b, in milliseconds,
 * from the shortest to the longest.
 */
const delaysOfOther = Effect.fnUntraced(function* (seconds: number, slowInStep: number, otherInStep: number) {
  const broker = yield* MemoryBroker
  const [slow, other] = [yield* idOf("a"), yield* idOf("b")]
  const sentAt = new Map<string, number>()
  const delays: Array<number> = []
  let read = 0
  let sent = 0
  const steps = (seconds * 1_000) / stepMillis
  for (let step = 0; step < steps + 200; step++) {
    if (step < steps) {
      for (let i = 0; i < slowInStep; i++) yield* broker.publishAppend(JSON.stringify({ id: slow, log: "x" }))
      for (let i = 0; i < otherInStep; i++) {
        const name = `other${sent++}`
        sentAt.set(name, step)
        yield* broker.publishAppend(JSON.stringify({ id: other, log: "x", request_id: name }))
      }
    }
    yield* TestClock.adjust(stepMillis)
    const events = broker.events()
    for (; read < events.length; read++) {
      const name = (JSON.parse(events[read]!.payload) as { readonly request_id?: string }).request_id
      if (name !== undefined) delays.push((step - sentAt.get(name)!) * stepMillis)
    }
  }
  assert.lengthOf(delays, sent)
  const shards = yield* MemoryShards
  for (const shard of ["a", "b"]) yield* shards.setDelay(shard, 0)
  for (let i = 0; i < 1_000 && broker.unsettled() > 0; i++) yield* TestClock.adjust("100 millis")
  assert.strictEqual(broker.unsettled(), 0)
  return delays.toSorted((a, b) => a - b)
})

describe("a shard whose transactions are slow", () => {
  it.effect("with more coming than it takes, does not delay the others'", () =>
    Effect.gen(function* () {
      const shards = yield* MemoryShards
      const metrics = yield* Metrics
      yield* worker
      yield* shards.setDelay("a", 3_000)
      yield* shards.setDelay("b", 2)
      // 2,500 a second, where 1,000 are done.
      const delays = yield* delaysOfOther(25, 25, 1)
      assert.isAtMost(delays[Math.floor(delays.length * 0.99)]!, 5 * stepMillis)
      assert.isAbove(yield* metrics.value("parked_total", { shard: "a", kind: "appends" }), 1_000)
      assert.strictEqual(yield* metrics.value("parked_total", { shard: "b", kind: "appends" }), 0)
    }).pipe(Effect.scoped, Effect.provide(world)),
  )

  it.effect("is waited for where all are as slow: nothing is parked", () =>
    Effect.gen(function* () {
      const shards = yield* MemoryShards
      const metrics = yield* Metrics
      yield* worker
      yield* shards.setDelay("a", 400)
      yield* shards.setDelay("b", 400)
      yield* delaysOfOther(4, 100, 100)
      for (const shard of ["a", "b"]) {
        assert.strictEqual(yield* metrics.value("parked_total", { shard, kind: "appends" }), 0)
      }
    }).pipe(Effect.scoped, Effect.provide(world)),
  )
})

describe("a lane's outage", () => {
  it.effect("is said with every reason that it has, each once", () => {
    const logged: Array<string> = []
    const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
    const said = () => logged.filter((line) => line.includes("retrying until it is back"))
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      yield* worker
      yield* shards.setState("a", "down")
      yield* broker.publishAppend(JSON.stringify({ id: yield* idOf("a"), log: "x" }))
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(said(), 1)
      yield* shards.setState("a", "full")
      yield* TestClock.adjust("1 minute")
      yield* shards.setState("a", "down")
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(said(), 2)
      assert.include(said()[1], "53100")
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(broker.unsettled(), 0)
      assert.strictEqual(logged.filter((line) => line.includes("shard a: back")).length, 1)
      yield* shards.setState("a", "down")
      yield* broker.publishAppend(JSON.stringify({ id: yield* idOf("a"), log: "y" }))
      yield* TestClock.adjust("1 minute")
      assert.lengthOf(said(), 3)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("1 minute")
    }).pipe(Effect.scoped, Effect.provide(Layer.mergeAll(world, logger)))
  })
})
