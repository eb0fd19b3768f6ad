/** The whole worker on in-memory layers: no process, no socket, and time that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"

const shardNames = ["a", "b"]

const world = (maxPayload?: number) =>
  Layer.mergeAll(
    brokerMemory(maxPayload === undefined ? {} : { maxPayload }),
    HashRingLive(shardNames.map((name) => ({ name }))),
    shardsMemory(shardNames, { reject: (log) => log === "poison" }),
    metricsMemory,
  )

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

interface Body {
  readonly status: string
  readonly position: number
  readonly page: number
  readonly last: boolean
  readonly next?: string
  readonly error?: { readonly code: string }
  readonly entries: ReadonlyArray<{ readonly log: string; readonly position: number }>
}

const nextBody = Effect.map(
  MemoryBroker.use((broker) => broker.nextEvent),
  ({ payload }) => JSON.parse(payload) as Body,
)

const append = (id: number, log: string) =>
  Effect.andThen(
    MemoryBroker.use((broker) => broker.publishAppend(JSON.stringify({ id, log }))),
    nextBody,
  )

const readAll = Effect.fnUntraced(function* (request: Readonly<Record<string, unknown>>) {
  yield* MemoryBroker.use((broker) => broker.publishQuery(JSON.stringify(request)))
  const pages: Array<Body> = []
  do pages.push(yield* nextBody)
  while (!pages.at(-1)!.last)
  return pages
})

describe("worker in memory", () => {
  it.effect("appends, answers and reads", () =>
    Effect.gen(function* () {
      yield* worker
      assert.deepInclude(yield* append(1, "one"), { status: "ok", position: 1 })
      assert.deepInclude(yield* append(1, "two"), { status: "ok", position: 2 })
      const [page] = yield* readAll({ id: 1 })
      assert.deepStrictEqual(
        page!.entries.map((entry) => entry.log),
        ["one", "two"],
      )
      assert.strictEqual((yield* MemoryBroker).unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("pages never exceed max_payload and join to the whole log", () =>
    Effect.gen(function* () {
      yield* worker
      const logs = Array.from({ length: 50 }, (_, i) => String(i).repeat(100))
      for (const log of logs) yield* append(7, log)
      const pages = yield* readAll({ id: 7 })
      assert.isAbove(pages.length, 1)
      assert.deepStrictEqual(
        pages.map((page) => page.page),
        pages.map((_, i) => i),
      )
      for (const { payload } of (yield* MemoryBroker).events()) assert.isAtMost(Buffer.byteLength(payload), 4096)
      assert.deepStrictEqual(
        pages.flatMap((page) => page.entries.map((entry) => entry.log)),
        logs,
      )
    }).pipe(Effect.scoped, Effect.provide(world(4096))),
  )

  it.effect("poison is cut out of its batch: one dead letter, and everything beside it is stored", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      for (let i = 0; i < 40; i++) {
        yield* broker.publishAppend(JSON.stringify({ id: 5, log: i === 17 ? "poison" : String(i) }))
      }
      yield* worker
      const bodies = yield* Effect.forEach(Array.from({ length: 40 }), () => nextBody)
      assert.lengthOf(
        bodies.filter((body) => body.status === "ok"),
        39,
      )
      assert.deepStrictEqual(
        bodies.flatMap((body) => (body.error === undefined ? [] : [body.error.code])),
        ["entry_rejected"],
      )
      assert.deepStrictEqual(
        broker.deadLetters().map(({ code, original }) => [code, original.seq]),
        [["entry_rejected", 18]],
      )
      const [page] = yield* readAll({ id: 5 })
      assert.deepStrictEqual(
        page!.entries.map((entry) => entry.position),
        Array.from({ length: 39 }, (_, i) => i + 1),
      )
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("a shard that is down for hours delays its own objects only, and loses nothing", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      yield* worker
      // Objects of both shards, as the ring places them.
      const first = yield* append(1, "x")
      assert.strictEqual(first.position, 1)
      const ids = Array.from({ length: 100 }, (_, i) => i + 100)
      yield* shards.setState("a", "down")
      for (const id of ids) yield* broker.publishAppend(JSON.stringify({ id, log: "during" }))
      yield* TestClock.adjust("3 hours")
      const during = broker.events().length - 1
      assert.isAbove(during, 20)
      assert.isBelow(during, 80)
      yield* shards.setState("a", "up")
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(broker.events().length - 1, 100)
      assert.strictEqual(broker.unsettled(), 0)
      assert.lengthOf(broker.deadLetters(), 0)
      const ring = yield* HashRing
      for (const id of ids.map((each) => ObjectId.make(BigInt(each)))) {
        assert.lengthOf(yield* shards.entries(ring.shardOf(id), id), 1)
      }
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("a long transaction is followed by a larger one, a short one by one of the ordinary size", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const flood = Effect.fnUntraced(function* (id: number) {
        for (let i = 0; i < 10_000; i++) yield* broker.publishAppend(JSON.stringify({ id, log: String(i) }))
      })
      const largest = Effect.map(shards.batches("a"), (all) => all.toSorted((a, b) => b - a).slice(0, 2))
      const ring = yield* HashRing
      const id = Array.from({ length: 100 }, (_, i) => i).find((i) => ring.shardOf(ObjectId.make(BigInt(i))) === "a")!
      yield* worker
      yield* flood(id)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* largest, [limits.batchEntriesMax, limits.batchEntriesMax])
      yield* shards.setState("a", "hang")
      yield* broker.publishAppend(JSON.stringify({ id, log: "long" }))
      yield* shards.awaitUse("a")
      yield* flood(id)
      yield* TestClock.adjust("500 millis")
      yield* shards.setState("a", "up")
      for (let i = 0; i < 100 && broker.unsettled() > 0; i++) yield* TestClock.adjust("100 millis")
      assert.deepStrictEqual(yield* largest, [1.5 * limits.batchEntriesMax, limits.batchEntriesMax])
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("what a stopping worker holds is handed back at once and done by another", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const first = yield* worker
      yield* shards.setState("a", "down")
      yield* shards.setState("b", "down")
      for (let id = 0; id < 50; id++) yield* broker.publishAppend(JSON.stringify({ id, log: "x" }))
      yield* TestClock.adjust("1 second")
      const stopping = yield* Effect.forkChild(Fiber.interrupt(first))
      // The bounded wait for transactions under way.
      yield* TestClock.adjust("6 seconds")
      yield* Fiber.join(stopping)
      yield* shards.setState("a", "up")
      yield* shards.setState("b", "up")
      yield* worker
      // Well below the broker's ack_wait of 30 s.
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(broker.unsettled(), 0)
      assert.lengthOf(broker.events(), 50)
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("a refused message is answered, kept and counted", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const metrics = yield* Metrics
      yield* worker
      yield* broker.publishAppend("garbage")
      assert.strictEqual((yield* nextBody).error!.code, "invalid_json")
      yield* broker.publishQuery(`{"id":-1}`)
      assert.strictEqual((yield* nextBody).error!.code, "invalid_message")
      yield* TestClock.adjust("1 second")
      assert.lengthOf(broker.deadLetters(), 2)
      assert.strictEqual(yield* metrics.value("dead_letters_total", { code: "invalid_json" }), 1)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world())),
  )

  it.effect("a read that goes on after a limit shows what was appended meanwhile", () =>
    Effect.gen(function* () {
      yield* worker
      for (let i = 0; i < 3; i++) yield* append(9, String(i))
      const [page] = yield* readAll({ id: 9, limit: 2 })
      assert.isDefined(page!.next)
      yield* append(9, "later")
      const [rest] = yield* readAll({ id: 9, after: page!.next })
      assert.deepStrictEqual(
        rest!.entries.map((entry) => entry.log),
        ["2", "later"],
      )
    }).pipe(Effect.scoped, Effect.provide(world())),
  )
})
