/** Spans of a whole worker in memory: what is sampled, linked and passed on, and how each message's span ends. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber, Layer, Option, Tracer } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import * as MessageSpans from "../../src/trace/MessageSpans.ts"
import { layerMemory as metricsMemory } from "../../src/observe/Metrics.ts"
import * as Sampler from "../../src/trace/Sampler.ts"
import * as serviceTracer from "../../src/trace/serviceTracer.ts"
import { Tracing } from "../../src/trace/Tracing.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRingLive } from "../../src/placement/HashRing.ts"
import { errorType } from "../../src/shard/errorType.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"

const world = Layer.mergeAll(
  brokerMemory(),
  HashRingLive([{ name: "a" }]),
  shardsMemory(["a"], { reject: (log) => log === "poison" }),
  metricsMemory,
)

/** Spans as they end. */
const ended: Array<Tracer.Span> = []

const tracer = serviceTracer.make(
  Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      const end = span.end.bind(span)
      span.end = (endTime, exit) => {
        end(endTime, exit)
        ended.push(span)
      }
      return span
    },
  }),
  errorType,
)

const tracing = (sampler: Sampler.Sampler) =>
  Layer.effect(
    Tracing,
    Effect.map(Clock.Clock, (clock) => {
      ended.length = 0
      return MessageSpans.make({ tracer, clock, sampler, responseTopic: "response" })
    }),
  )

const heeding = (share: number) => Layer.merge(world, tracing(Sampler.make({ share: share, heedsParent: true })))

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

const named = (name: string) => ended.filter((span) => span.name === name)
const parentOf = (span: Tracer.Span) => Option.getOrUndefined(span.parent)?.spanId
const settlements = () => named("process logs").map((span) => span.attributes.get("messaging.nats.settlement"))
const linked = (span: Tracer.Span) => span.links.map((link) => link.span.spanId)

const sender = (flags: string) => `00-${"a".repeat(32)}-${"b".repeat(16)}-${flags}`

describe("traces in memory", () => {
  it.effect("without tracing the context is passed on, and a malformed one is not", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* worker
      yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: sender("01"), tracestate: "v=1" })
      assert.deepStrictEqual((yield* broker.nextEvent).trace, { traceparent: sender("01"), tracestate: "v=1" })
      yield* broker.publishAppend(`{"id":1,"log":"x"}`, { Traceparent: sender("00"), Tracestate: "no state" })
      assert.deepStrictEqual((yield* broker.nextEvent).trace, { traceparent: sender("00"), tracestate: undefined })
      yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: "00-a-b-01", tracestate: "v=1" })
      assert.isUndefined((yield* broker.nextEvent).trace)
      yield* broker.publishQuery(`{"id":1}`, { traceparent: sender("01") })
      assert.strictEqual((yield* broker.nextEvent).trace?.traceparent, sender("01"))
      yield* broker.publishAppend("bad", { traceparent: sender("01") })
      assert.strictEqual((yield* broker.nextEvent).trace?.traceparent, sender("01"))
    }).pipe(Effect.scoped, Effect.provide(world)),
  )

  it.effect("what is not sampled makes no span, also beside what is", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      for (const flags of ["00", "01", "00"]) {
        yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: sender(flags) })
      }
      yield* broker.publishAppend(`{"id":1,"log":"x"}`)
      yield* worker
      const events = yield* Effect.forEach([1, 2, 3, 4], () => broker.nextEvent)
      yield* TestClock.adjust("1 second")
      const [message] = named("process logs")
      const [batch] = named("append batch")
      assert.strictEqual(named("process logs").length, 1)
      assert.deepStrictEqual(linked(batch!), [message!.spanId])
      assert.strictEqual(batch!.attributes.get("messaging.batch.message_count"), 4)
      assert.strictEqual(events[0]!.trace?.traceparent, sender("00"))
      assert.strictEqual(
        events[1]!.trace?.traceparent,
        `00-${"a".repeat(32)}-${named("publish response")[0]!.spanId}-01`,
      )
      assert.isUndefined(events[3]!.trace)
      ended.length = 0
      yield* broker.publishAppend(`{"id":1,"log":"x"}`)
      yield* broker.nextEvent
      yield* TestClock.adjust("1 second")
      assert.lengthOf(ended, 0)
    }).pipe(Effect.scoped, Effect.provide(heeding(0))),
  )

  it.effect("a share that does not heed the parent clears its flag for what follows", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      yield* worker
      yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: sender("01"), tracestate: "v=1" })
      assert.deepStrictEqual((yield* broker.nextEvent).trace, { traceparent: sender("00"), tracestate: "v=1" })
    }).pipe(Effect.scoped, Effect.provide(Layer.merge(world, tracing(Sampler.make({ share: 0, heedsParent: false }))))),
  )

  it.effect("a batch links 128 messages at most, and each of them leads to the batch", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      for (let i = 0; i < 300; i++) yield* broker.publishAppend(`{"id":1,"log":"x"}`)
      yield* worker
      yield* Effect.forEach(Array.from({ length: 300 }), () => broker.nextEvent)
      yield* TestClock.adjust("1 second")
      const [batch, ...others] = named("append batch")
      assert.lengthOf(others, 0)
      const messages = named("process logs")
      assert.lengthOf(messages, 300)
      assert.strictEqual(new Set(messages.map((span) => span.traceId)).size, 300)
      assert.lengthOf(batch!.links, 128)
      for (const message of messages) assert.deepStrictEqual(linked(message), [batch!.spanId])
      assert.strictEqual(parentOf(batch!), messages[0]!.spanId)
    }).pipe(Effect.scoped, Effect.provide(heeding(1))),
  )

  it.effect(
    "a shard that is down: each attempt has its span and its reason; a message has one until it is stored",
    () =>
      Effect.gen(function* () {
        const broker = yield* MemoryBroker
        const shards = yield* MemoryShards
        yield* worker
        yield* shards.setState("a", "down")
        yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: sender("01") })
        yield* TestClock.adjust("1 hour")
        const failed = named("append batch")
        assert.isAbove(failed.length, 100)
        for (const span of failed) {
          assert.isString(span.attributes.get("error.type"))
          assert.isTrue(span.status._tag === "Ended" && span.status.exit._tag === "Failure")
        }
        assert.lengthOf(named("process logs"), 0)
        yield* shards.setState("a", "up")
        yield* TestClock.adjust("1 minute")
        assert.deepStrictEqual(settlements(), ["ack"])
        // Not one for each attempt of an outage.
        assert.lengthOf(named("process logs")[0]!.links, 128)
        assert.isFalse(named("append batch").at(-1)!.attributes.has("error.type"))
      }).pipe(Effect.scoped, Effect.provide(heeding(0))),
  )

  it.effect("what a worker gives back ends its span; the next delivery has another one in the same trace", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const first = yield* worker
      yield* shards.setState("a", "down")
      yield* broker.publishAppend(`{"id":1,"log":"x"}`, { traceparent: sender("01") })
      yield* TestClock.adjust("1 second")
      const stopping = yield* Effect.forkChild(Fiber.interrupt(first))
      yield* TestClock.adjust("6 seconds")
      yield* Fiber.join(stopping)
      assert.deepStrictEqual(settlements(), ["nak"])
      yield* shards.setState("a", "up")
      yield* worker
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(settlements(), ["nak", "ack"])
      for (const span of named("process logs")) {
        assert.strictEqual(span.traceId, "a".repeat(32))
        assert.strictEqual(parentOf(span), "b".repeat(16))
      }
      assert.deepStrictEqual(
        named("process logs").map((span) => span.attributes.get("messaging.nats.delivery_count")),
        [1, 2],
      )
    }).pipe(Effect.scoped, Effect.provide(heeding(0))),
  )

  it.effect("poison: the rejected batch, its halves, and the message that was refused", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      for (const log of ["x", "poison", "y", "z"]) yield* broker.publishAppend(JSON.stringify({ id: 1, log }))
      yield* worker
      yield* Effect.forEach([1, 2, 3, 4], () => broker.nextEvent)
      yield* TestClock.adjust("1 second")
      const sizes = (spans: ReadonlyArray<Tracer.Span>) =>
        spans.map((span) => span.attributes.get("messaging.batch.message_count"))
      const [rejected, stored] = [true, false].map((failed) =>
        named("append batch").filter((span) => span.attributes.has("error.type") === failed),
      )
      assert.sameMembers(sizes(rejected!), [4, 2, 1])
      assert.sameMembers(sizes(stored!), [1, 2])
      assert.deepStrictEqual(
        named("process logs").flatMap((span) => span.attributes.get("error.type") ?? []),
        ["entry_rejected"],
      )
    }).pipe(Effect.scoped, Effect.provide(heeding(1))),
  )
})
