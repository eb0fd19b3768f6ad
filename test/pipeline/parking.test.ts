/** Shards that take nothing, in memory and under a test's clock: what is parked, what waits, and what flows meanwhile. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Logger } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"
import { ShardPool } from "../../src/shard/ShardPool.ts"

const world = (shards: ReadonlyArray<string>, ackPendingMax = 10_000) =>
  Layer.mergeAll(
    brokerMemory({ ackPendingMax }),
    HashRingLive(shards.map((name) => ({ name }))),
    shardsMemory(shards, { reject: (log) => log === "poison" }),
    metricsMemory,
  )

/** What a lane that is down keeps: a batch that is tried, and what waits. */
const heldMax = 2 * limits.batchEntriesMax

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

/** The first `count` ids of a shard. */
const idsOf = Effect.fnUntraced(function* (shard: string, count: number) {
  const ring = yield* HashRing
  const ids: Array<number> = []
  for (let id = 1; ids.length < count; id++) if (ring.shardOf(ObjectId.make(BigInt(id))) === shard) ids.push(id)
  return ids
})

const publish = (id: number, log: string) =>
  MemoryBroker.use((broker) => broker.publishAppend(JSON.stringify({ id, log })))

/** Each object has the appends of its own, once each and in their order, at positions without gaps. */
const assertLogs = Effect.fnUntraced(function* (expected: ReadonlyMap<number, ReadonlyArray<string>>) {
  const ring = yield* HashRing
  const shards = yield* MemoryShards
  for (const [number, logs] of expected) {
    const id = ObjectId.make(BigInt(number))
    const entries = yield* shards.entries(ring.shardOf(id), id)
    assert.deepStrictEqual(
      entries.map(({ position }) => position),
      logs.map((_, i) => i + 1),
      `positions of ${number}`,
    )
    const sorted = entries.toSorted((a, b) =>
      a.timestamp < b.timestamp ? -1 : a.timestamp > b.timestamp ? 1 : a.seq - b.seq,
    )
    assert.deepStrictEqual(
      sorted.map(({ log }) => log),
      logs,
      `log of ${number}`,
    )
  }
})

/** Publishes `count` appends in turn over objects, some of them of a shard that is down; gives what the logs must be. */
const publishAll = Effect.fnUntraced(function* (ids: ReadonlyArray<number>, count: number, from = 0) {
  const expected = new Map<number, Array<string>>(ids.map((id) => [id, []]))
  for (let i = from; i < from + count; i++) {
    const id = ids[i % ids.length]!
    expected.get(id)!.push(String(i))
    yield* publish(id, String(i))
  }
  return expected
})

/** Moves the clock on until so many events are there; a minute at most. */
const untilEvents = Effect.fnUntraced(function* (count: number) {
  const broker = yield* MemoryBroker
  for (let i = 0; i < 6_000 && broker.events().length < count; i++) yield* TestClock.adjust("10 millis")
  assert.isAtLeast(broker.events().length, count)
})

const events = MemoryBroker.use((broker) => Effect.sync(() => broker.events().length))

describe("a shard that is down", () => {
  it.effect(
    "40,000 appends of it, four times what may be under way, wait elsewhere than in the intake, the other shard flows, and all is stored after",
    () =>
      Effect.gen(function* () {
        const broker = yield* MemoryBroker
        const shards = yield* MemoryShards
        const metrics = yield* Metrics
        const lost = yield* idsOf("a", 30)
        const flowing = yield* idsOf("b", 10)
        yield* worker
        yield* shards.setState("a", "down")
        const expectedLost = new Map<number, ReadonlyArray<string>>(yield* publishAll(lost, 40_000))
        const expectedFlowing = yield* publishAll(flowing, 2_000)
        yield* TestClock.adjust("1 minute")
        assert.strictEqual(yield* events, 2_000)
        yield* assertLogs(expectedFlowing)
        // What the lane holds, and nothing else.
        assert.isAtMost(broker.appendsUnderWay(), heldMax)
        assert.strictEqual(broker.appendsUnderWay() + broker.parkedFor("appends", "a"), 40_000)
        assert.strictEqual(
          yield* metrics.value("parked_total", { shard: "a", kind: "appends" }),
          broker.parkedFor("appends", "a"),
        )
        assert.strictEqual(yield* metrics.value("handed_back_total", { shard: "a" }), 0)

        yield* TestClock.adjust("10 minutes")
        yield* publish(flowing[0]!, "still")
        yield* TestClock.adjust("1 second")
        assert.strictEqual(yield* events, 2_001)

        yield* shards.setState("a", "up")
        yield* untilEvents(42_001)
        yield* TestClock.adjust("1 second")
        assert.strictEqual(broker.unsettled(), 0)
        yield* assertLogs(expectedLost)
      }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("several workers park and drain it together", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const ids = [...(yield* idsOf("a", 5)), ...(yield* idsOf("b", 5))]
      for (let i = 0; i < 3; i++) yield* worker
      yield* shards.setState("a", "down")
      const expected = yield* publishAll(ids, 20_000)
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(yield* events, 10_000)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(broker.unsettled(), 0)
      yield* assertLogs(expected)
      const answered = new Set(broker.events().map(({ messageId }) => messageId))
      assert.strictEqual(answered.size, 20_000)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("when all are down the intake waits: nothing is parked, nothing is handed back", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const metrics = yield* Metrics
      const ids = [...(yield* idsOf("a", 2)), ...(yield* idsOf("b", 2))]
      yield* worker
      yield* shards.setState("a", "down")
      yield* shards.setState("b", "down")
      const expected = yield* publishAll(ids, 12_000)
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* events, 0)
      for (const [shard, name] of ["a", "b"].entries()) {
        assert.strictEqual(broker.parkedFor("appends", name), 0, `shard ${shard}`)
        assert.strictEqual(yield* metrics.value("handed_back_total", { shard: name }), 0)
      }
      assert.strictEqual(yield* metrics.value("redeliveries_total", { subject: "append" }), 0)
      yield* shards.setState("b", "up")
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(yield* events, 6_000)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(broker.unsettled(), 0)
      yield* assertLogs(expected)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("one that hangs without failing is parked as well, and the other flows", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const ids = [...(yield* idsOf("a", 2)), ...(yield* idsOf("b", 2))]
      yield* worker
      yield* shards.setState("a", "hang")
      const expected = yield* publishAll(ids, 12_000)
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* events, 6_000)
      assert.isAtLeast(broker.parkedFor("appends", "a"), 6_000 - heldMax)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(broker.unsettled(), 0)
      yield* assertLogs(expected)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("fresh appends are stored while a backlog drains", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const [first, second] = yield* idsOf("a", 2)
      const [other] = yield* idsOf("b", 1)
      yield* worker
      yield* shards.setState("a", "down")
      yield* publish(other!, "x")
      yield* publishAll([first!], 20_000)
      yield* TestClock.adjust("1 minute")
      assert.isAbove(broker.parkedFor("appends", "a"), 15_000)
      yield* shards.setState("a", "up")
      // In the middle of the drain, which takes no time of the clock.
      yield* Effect.forkChild(
        Effect.andThen(
          Effect.forEach(Array.from({ length: 3_000 }), () => broker.nextEvent, { discard: true }),
          publishAll([second!], 200),
        ),
      )
      yield* untilEvents(20_201)
      yield* TestClock.adjust("1 second")
      const order = broker.events().map(({ payload }) => (JSON.parse(payload) as { readonly id: number }).id)
      // Behind what the lane held and some batches, far before the backlog's end.
      assert.isBelow(order.indexOf(second!), 10_000)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("a stopping worker leaves what it was parking to another", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const ids = [...(yield* idsOf("a", 2)), ...(yield* idsOf("b", 2))]
      yield* shards.setState("a", "down")
      const expected = yield* publishAll(ids, 8_000)
      const stopped = Effect.gen(function* () {
        yield* worker
        yield* TestClock.adjust("1 second")
        yield* Effect.forkDetach(TestClock.adjust("10 seconds"))
      })
      yield* Effect.scoped(stopped)
      yield* shards.setState("a", "up")
      yield* worker
      yield* TestClock.adjust("20 seconds")
      assert.strictEqual(broker.unsettled(), 0)
      yield* assertLogs(expected)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )
})

describe("reads of a shard that is down", () => {
  it.effect("are parked after some attempts, do not hold up others, and are answered when it is back", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const [lost] = yield* idsOf("a", 1)
      const [flowing] = yield* idsOf("b", 1)
      yield* worker
      yield* publish(lost!, "x")
      yield* untilEvents(1)
      yield* shards.setState("a", "down")
      for (let i = 0; i < 400; i++) yield* broker.publishQuery(JSON.stringify({ id: lost, request_id: String(i) }))
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(broker.queriesUnderWay(), 0)
      assert.strictEqual(broker.parkedFor("reads", "a"), 400)
      yield* broker.publishQuery(JSON.stringify({ id: flowing }))
      yield* untilEvents(2)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(broker.unsettled(), 0)
      const answers = broker.events().slice(2)
      assert.lengthOf(answers, 400)
      for (const { payload } of answers) assert.deepInclude(JSON.parse(payload), { status: "ok", last: true })
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"], 300))),
  )
})

describe("a database that is older than it was", () => {
  it.effect("is noticed, and said once", () => {
    const logged: Array<string> = []
    const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
    const complaints = () => logged.filter((line) => line.includes("run: objectlog replay")).length
    return Effect.gen(function* () {
      const shards = yield* MemoryShards
      const [id] = yield* idsOf("a", 1)
      yield* worker
      yield* publishAll([id!], 100)
      yield* untilEvents(100)
      yield* TestClock.adjust("2 minutes")
      // One that is refused was never there.
      yield* publish(id!, "poison")
      yield* untilEvents(101)
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(complaints(), 0)
      yield* shards.restore("a", ObjectId.make(BigInt(id!)), 70)
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(complaints(), 1)
      assert.include(logged.at(-1), "shard a: ")
      yield* publish(id!, "goes on")
      yield* untilEvents(102)
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(complaints(), 1)
    }).pipe(Effect.scoped, Effect.provide(Layer.mergeAll(world(["a", "b"]), logger)))
  })
})

describe("an append that is too large to be parked", () => {
  it.effect("goes back to the intake, unacknowledged, and is stored when its shard is back", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const metrics = yield* Metrics
      const [lost] = yield* idsOf("a", 1)
      const [flowing] = yield* idsOf("b", 1)
      yield* worker
      yield* shards.setState("a", "down")
      const expected = (yield* publishAll([lost!], heldMax + 1_000)).get(lost!)!
      // The whole message is as large as the broker takes; what is added to park it would not fit.
      const frame = JSON.stringify({ id: lost, log: "large", more: "" })
      const large = JSON.stringify({ id: lost, log: "large", more: "x".repeat(1024 * 1024 - frame.length) })
      yield* broker.publishAppend(large)
      yield* publish(flowing!, "x")
      yield* TestClock.adjust("1 minute")
      const [handedBack, unsettled] = [yield* metrics.value("handed_back_total", { shard: "a" }), broker.unsettled()]
      yield* shards.setState("a", "up")
      // It comes again after a minute and a fifth at most.
      yield* TestClock.adjust("2 minutes")
      yield* untilEvents(heldMax + 1_002)
      assert.isAtLeast(handedBack, 1)
      assert.strictEqual(unsettled, heldMax + 1_001)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(broker.unsettled(), 0)
      yield* assertLogs(new Map([[lost!, [...expected, "large"]]]))
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )
})

describe("another entry in the place of one that was committed", () => {
  it.effect("is a loss too, also with the sequence number of that one: its stream began anew", () => {
    const logged: Array<string> = []
    const logger = Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])
    return Effect.gen(function* () {
      const shards = yield* MemoryShards
      const pool = yield* ShardPool
      const [id] = yield* idsOf("a", 1)
      yield* worker
      yield* publishAll([id!], 10)
      yield* untilEvents(10)
      const object = ObjectId.make(BigInt(id!))
      const { seq, timestamp } = (yield* shards.entries("a", object)).at(-1)!
      yield* shards.restore("a", object, 9)
      const other = { id: object, seq, timestamp: timestamp + 1n, log: "other", messageId: undefined }
      yield* pool.append("a", [{ ...other, redelivered: false }])
      yield* TestClock.adjust("2 minutes")
      assert.lengthOf(
        logged.filter((line) => line.includes("run: objectlog replay")),
        1,
      )
    }).pipe(Effect.scoped, Effect.provide(Layer.mergeAll(world(["a", "b"]), logger)))
  })
})

describe("a refused append that is tried again", () => {
  it.effect("gets its original place, and an event of its own", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const [id] = yield* idsOf("a", 1)
      yield* worker
      const original = yield* publish(id!, "poison")
      yield* publish(id!, "later")
      yield* untilEvents(2)
      assert.lengthOf(broker.deadLetters(), 1)

      yield* broker.retry(original, "one")
      yield* untilEvents(3)
      assert.lengthOf(broker.deadLetters(), 2)
      assert.lengthOf(broker.events(), 3)

      yield* shards.reject("a", undefined)
      yield* broker.retry(original, "two")
      yield* untilEvents(4)
      yield* TestClock.adjust("1 second")
      const { payload } = broker.events()[3]!
      assert.deepInclude(JSON.parse(payload), { status: "ok", position: 2, seq: original.seq })
      const entries = yield* shards.entries("a", ObjectId.make(BigInt(id!)))
      assert.deepStrictEqual(
        entries.map(({ log, seq }) => [log, seq]),
        [
          ["later", original.seq + 1],
          ["poison", original.seq],
        ],
      )
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )
})
