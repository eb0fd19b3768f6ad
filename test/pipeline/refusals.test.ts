/** Dead letters that nobody takes, in memory and under a test's clock: what is in order flows all the same. */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Logger } from "effect"
import { TestClock } from "effect/testing"
import { Broker, BrokerUnavailable } from "../../src/broker/Broker.ts"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory } from "../../src/shard/Memory.ts"

const shards = ["a", "b"]

/** What the stream of dead letters does. */
interface Letters {
  takes: boolean
  /** How many are being tried, and the most that ever were. */
  underWay: Set<unknown>
  most: number
}

const world = (letters: Letters) =>
  Layer.mergeAll(
    Layer.effectContext(
      Effect.gen(function* () {
        const context = yield* Layer.build(brokerMemory())
        const broker = Context.get(context, Broker)
        return Context.add(context, Broker, {
          ...broker,
          deadLetter: (delivery, reason) =>
            Effect.suspend(() => {
              letters.underWay.add(delivery)
              letters.most = Math.max(letters.most, letters.underWay.size)
              if (!letters.takes) {
                return Effect.fail(new BrokerUnavailable({ operation: "publish", cause: new Error("full") }))
              }
              letters.underWay.delete(delivery)
              return broker.deadLetter(delivery, reason)
            }),
        })
      }),
    ),
    HashRingLive(shards.map((name) => ({ name }))),
    shardsMemory(shards, { reject: (log) => log === "poison" }),
    metricsMemory,
    Logger.layer([]),
  )

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

const answered = (requestId: string) =>
  MemoryBroker.useSync((broker) =>
    broker.events().some(({ payload }) => payload.includes(`"request_id":"${requestId}"`)),
  )

/** Moves the clock on until it is so; a while at most. */
const until = Effect.fnUntraced(function* <R>(what: string, holds: Effect.Effect<boolean, never, R>, minutes = 1) {
  for (let i = 0; i < minutes * 600; i++) {
    if (yield* holds) return
    yield* TestClock.adjust("100 millis")
  }
  assert.fail(`expected: ${what}`)
})

const refusing = (): Letters => ({ takes: false, underWay: new Set(), most: 0 })

describe("dead letters that nobody takes", () => {
  it.effect(
    "appends that are in order go on; what is refused is bounded, held or handed back, and kept at last",
    () => {
      const letters = refusing()
      return Effect.gen(function* () {
        const broker = yield* MemoryBroker
        const metrics = yield* Metrics
        yield* worker
        const bad = 2 * limits.refusalsWaiting
        for (let i = 0; i < bad; i++) yield* broker.publishAppend(`{"id":${i}}`)
        for (let id = 0; id < 20; id++) yield* broker.publishAppend(`{"id":${id},"log":"x","request_id":"good ${id}"}`)
        for (let id = 0; id < 20; id++) yield* until(`append ${id} is answered`, answered(`good ${id}`))
        yield* TestClock.adjust("5 minutes")
        assert.isAtMost(letters.most, limits.refusalsWaiting)
        assert.isAbove(yield* metrics.value("retries_total", { part: "dead letter", reason: "full" }), 0)
        assert.lengthOf(broker.deadLetters(), 0)
        yield* broker.publishAppend(`{"id":1,"log":"x","request_id":"late"}`)
        yield* until("what comes later is answered", answered("late"))
        letters.takes = true
        yield* until(
          "all are kept",
          Effect.sync(() => broker.unsettled() === 0),
          5,
        )
        assert.lengthOf(broker.deadLetters(), bad)
      }).pipe(Effect.scoped, Effect.provide(world(letters)))
    },
  )

  it.effect("what is held is not delivered again meanwhile", () => {
    const letters = refusing()
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const metrics = yield* Metrics
      yield* worker
      for (let i = 0; i < 200; i++) yield* broker.publishAppend("no JSON")
      for (let i = 0; i < 200; i++) yield* broker.publishQuery("no JSON")
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* metrics.value("redeliveries_total", { subject: "append" }), 0)
      assert.strictEqual(yield* metrics.value("redeliveries_total", { subject: "query" }), 0)
      letters.takes = true
      yield* TestClock.adjust("10 seconds")
      assert.lengthOf(broker.deadLetters(), 400)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })

  it.effect("few that are large fill it as well", () => {
    const letters = refusing()
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const metrics = yield* Metrics
      yield* worker
      const large = `no JSON ${"x".repeat(limits.refusalsBytesMax / 16)}`
      for (let i = 0; i < 40; i++) yield* broker.publishAppend(large)
      yield* TestClock.adjust("10 seconds")
      assert.isAtMost(letters.underWay.size, 16)
      assert.isAbove(yield* metrics.value("retries_total", { part: "dead letter", reason: "full" }), 0)
      letters.takes = true
      yield* until(
        "all are kept",
        Effect.sync(() => broker.unsettled() === 0),
        5,
      )
      assert.lengthOf(broker.deadLetters(), 40)
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })

  it.effect("reads that are in order are answered", () => {
    const letters = refusing()
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* worker
      for (let i = 0; i < 2_000; i++) yield* broker.publishQuery("no JSON")
      yield* broker.publishQuery(`{"id":1,"request_id":"good"}`)
      yield* until("the read is answered", answered("good"))
      letters.takes = true
      yield* until(
        "all are kept",
        Effect.sync(() => broker.unsettled() === 0),
        5,
      )
      assert.lengthOf(broker.deadLetters(), 2_000)
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })

  it.effect("an entry that its database refuses holds up nobody in its lane", () => {
    const letters = refusing()
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* worker
      yield* broker.publishAppend(`{"id":1,"log":"poison","request_id":"bad"}`)
      yield* TestClock.adjust("1 second")
      yield* broker.publishAppend(`{"id":1,"log":"x","request_id":"good"}`)
      yield* until("the next append is answered", answered("good"))
      letters.takes = true
      yield* until("the poison is answered", answered("bad"))
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })

  it.effect("a worker that stops hands back what it holds", () => {
    const letters = refusing()
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* worker
          for (let i = 0; i < 10; i++) yield* broker.publishAppend("no JSON")
          yield* TestClock.adjust("1 minute")
        }),
      )
      letters.takes = true
      yield* worker
      yield* until(
        "another one keeps them at once",
        Effect.sync(() => broker.deadLetters().length === 10),
      )
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })
})

describe("dead letters that are taken", () => {
  it.effect("many refusals at once are no reason to hand any of them back", () => {
    const letters = { ...refusing(), takes: true }
    return Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const metrics = yield* Metrics
      yield* worker
      const many = 3 * limits.refusalsWaiting
      for (let i = 0; i < many; i++) yield* broker.publishAppend("no JSON")
      yield* until(
        "all are kept",
        Effect.sync(() => broker.deadLetters().length === many),
      )
      assert.strictEqual(yield* metrics.value("retries_total", { part: "dead letter", reason: "full" }), 0)
    }).pipe(Effect.scoped, Effect.provide(world(letters)))
  })
})
