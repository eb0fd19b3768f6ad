/** Health on in-memory services, in time that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import {
  Broker,
  BrokerClosed,
  BrokerUnavailable,
  type BrokerState,
  type ConnectionView,
  untroubled,
} from "../../src/broker/Broker.ts"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { Health } from "../../src/observe/Health.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import { Parts } from "../../src/observe/Parts.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"

const names = ["a", "b"]

/** A broker whose answer about its state, and whose connection, the test decides. */
const world = (
  change: (state: BrokerState) => BrokerState | undefined = (state) => state,
  connection: () => ConnectionView = () => untroubled,
  closed: Effect.Effect<never, BrokerClosed> = Effect.never,
) =>
  Layer.mergeAll(
    Layer.effectContext(
      Effect.gen(function* () {
        const context = yield* Layer.build(brokerMemory())
        const broker = Context.get(context, Broker)
        const state = Effect.flatMap(broker.state, (found) => {
          const changed = change(found)
          return changed === undefined
            ? Effect.fail(new BrokerUnavailable({ operation: "state", cause: new Error("away") }))
            : Effect.succeed(changed)
        })
        return Context.add(context, Broker, { ...broker, state, connection, closed })
      }),
    ),
    HashRingLive(names.map((name) => ({ name }))),
    shardsMemory(names),
    metricsMemory,
    Health.layer,
  )

const worker = Effect.forkScoped(
  Health.use((health) => health.observing(runWorker({ responseTopic: "response", debug: false }))),
)

/** Sees no parts of other tests. */
const alone = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => Effect.provideService(self, Parts, new Set()))

/** Takes no request at all. */
const idle = Effect.forkScoped(Health.use((health) => health.observing(Effect.never)))

const append = (id: number) => MemoryBroker.use((broker) => broker.publishAppend(JSON.stringify({ id, log: "x" })))

const stuck = Health.use((health) => health.stuck)
const readiness = Health.use((health) => health.readiness)

describe("health", () => {
  it.effect("is starting before a worker is there; then it is ready", () =>
    Effect.gen(function* () {
      assert.deepInclude(yield* readiness, {
        ready: false,
        reasons: ["starting: waits for the broker and the shards"],
      })
      assert.deepStrictEqual(yield* stuck, [])
      yield* worker
      yield* TestClock.adjust("1 second")
      assert.deepInclude(yield* readiness, { ready: true, reasons: [] })
    }).pipe(Effect.scoped, Effect.provide(world()), alone),
  )

  it.effect("is ready while a shard answers, and says which does not", () =>
    Effect.gen(function* () {
      const shards = yield* MemoryShards
      yield* worker
      yield* shards.setState("b", "down")
      yield* TestClock.adjust("6 seconds")
      assert.deepInclude(yield* readiness, { ready: true, reasons: ["shard b: connection"] })
      assert.strictEqual(yield* (yield* Metrics).reading("shard_up", { shard: "b" }), 0)
      yield* shards.setState("a", "down")
      yield* TestClock.adjust("6 seconds")
      assert.deepInclude(yield* readiness, { ready: false, reasons: ["shard a: connection", "shard b: connection"] })
    }).pipe(Effect.scoped, Effect.provide(world()), alone),
  )

  it.effect("is alive through an outage of all shards, with work in every lane", () =>
    Effect.gen(function* () {
      const shards = yield* MemoryShards
      yield* worker
      yield* shards.setState("a", "down")
      yield* shards.setState("b", "down")
      for (let id = 0; id < 100; id++) yield* append(id)
      for (let minute = 0; minute < 30; minute++) {
        yield* TestClock.adjust("1 minute")
        assert.deepStrictEqual(yield* stuck, [])
      }
      assert.isAbove(yield* (yield* Metrics).reading("lane_entries", { shard: "a" }), 0)
      // Otherwise the end of the worker would wait, in time that nobody moves.
      yield* shards.setState("a", "up")
      yield* shards.setState("b", "up")
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual((yield* MemoryBroker).unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world()), alone),
  )

  it.effect("a lane that waits for what never comes is found", () =>
    Effect.gen(function* () {
      const shards = yield* MemoryShards
      yield* worker
      // The twin of the pool has no time limit: what the live one would end after 45 s hangs for ever.
      yield* shards.setState("a", "hang")
      yield* shards.setState("b", "hang")
      for (let id = 0; id < 20; id++) yield* append(id)
      yield* TestClock.adjust("110 seconds")
      assert.deepStrictEqual(yield* stuck, [])
      yield* TestClock.adjust("30 seconds")
      const found = yield* stuck
      assert.isTrue(found.some((finding) => finding.startsWith("lane of a: holds")))
      assert.isTrue(found.some((finding) => finding.startsWith("lane of b: holds")))
      yield* shards.setState("a", "up")
      yield* shards.setState("b", "up")
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* stuck, [])
    }).pipe(Effect.scoped, Effect.provide(world()), alone),
  )

  it.effect("requests that nobody takes are found, unless the broker is away", () => {
    let away = true
    return Effect.gen(function* () {
      yield* idle
      yield* append(1)
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(yield* stuck, [])
      assert.deepInclude(yield* readiness, { ready: false, reasons: ["broker: state failed: away"] })
      assert.isNaN(yield* (yield* Metrics).reading("consumer_pending", { subject: "append" }))
      away = false
      yield* TestClock.adjust("110 seconds")
      assert.deepStrictEqual(yield* stuck, [])
      assert.strictEqual(yield* (yield* Metrics).reading("consumer_pending", { subject: "append" }), 1)
      yield* TestClock.adjust("30 seconds")
      assert.match((yield* stuck)[0] ?? "", /^consumer of append requests: holds 1 and has not moved for 1\d\d s$/)
    }).pipe(Effect.scoped, Effect.provide(world((state) => (away ? undefined : state))), alone)
  })

  it.effect("a broker that stores nothing makes it not ready, is counted, and is no reason to restart", () => {
    let isStoring = false
    const connection = (): ConnectionView => ({
      ...untroubled,
      isStoring,
      troubles: isStoring ? [] : [{ text: "its store is full: insufficient resources", disabling: true }],
    })
    return Effect.gen(function* () {
      const { reading } = yield* Metrics
      yield* idle
      yield* append(1)
      yield* TestClock.adjust("10 minutes")
      assert.deepInclude(yield* readiness, {
        ready: false,
        reasons: ["broker: its store is full: insufficient resources"],
      })
      assert.deepStrictEqual(yield* stuck, [])
      assert.strictEqual(yield* reading("broker_storing", {}), 0)
      isStoring = true
      assert.deepInclude(yield* readiness, { ready: true, reasons: [] })
      assert.strictEqual(yield* reading("broker_storing", {}), 1)
    }).pipe(Effect.scoped, Effect.provide(world((state) => state, connection)), alone)
  })

  it.effect("a missing consumer makes it not ready, and is no reason to restart", () =>
    Effect.gen(function* () {
      yield* idle
      yield* TestClock.adjust("10 minutes")
      assert.deepInclude(yield* readiness, {
        ready: false,
        reasons: ["broker: the consumer objectlog of stream objectlog_logs is missing"],
      })
      assert.deepStrictEqual(yield* stuck, [])
    }).pipe(
      Effect.scoped,
      Effect.provide(
        world((state) => ({
          ...state,
          appends: undefined,
          problems: ["the consumer objectlog of stream objectlog_logs is missing"],
        })),
      ),
      alone,
    ),
  )

  it.effect(
    "what the broker refuses makes it not ready at once, where a worker needs it; each refusal is counted",
    () => {
      let view = untroubled
      const refused = (troubles: ConnectionView["troubles"], pull: number): ConnectionView => ({
        ...untroubled,
        troubles,
        violations: { ...untroubled.violations, pull },
      })
      return Effect.gen(function* () {
        const { value } = yield* Metrics
        yield* idle
        yield* TestClock.adjust("6 seconds")
        view = refused([{ text: "refused (pull): no", disabling: true }], 3)
        assert.deepInclude(yield* readiness, {
          ready: false,
          reasons: ["broker: refused (pull): no"],
          broker: { ok: false },
        })
        yield* TestClock.adjust("6 seconds")
        assert.strictEqual(yield* value("permission_violations_total", { operation: "pull" }), 3)
        view = refused([{ text: "refused (copy): no", disabling: false }], 5)
        assert.deepInclude(yield* readiness, {
          ready: true,
          reasons: ["broker: refused (copy): no"],
          broker: { ok: true },
        })
        yield* TestClock.adjust("6 seconds")
        assert.strictEqual(yield* value("permission_violations_total", { operation: "pull" }), 5)
        view = untroubled
        assert.deepInclude(yield* readiness, { ready: true, reasons: [] })
      }).pipe(Effect.scoped, Effect.provide(world(undefined, () => view)), alone)
    },
  )

  it.effect("a broker that is away is excused while it is tried to connect again, and only then", () => {
    let attempts = 0
    let tries = true
    const connection = () => ({ ...untroubled, connected: false, attempts: tries ? ++attempts : attempts })
    return Effect.gen(function* () {
      yield* idle
      yield* append(1)
      yield* TestClock.adjust("30 minutes")
      assert.deepStrictEqual(yield* stuck, [])
      tries = false
      yield* TestClock.adjust("140 seconds")
      const found = yield* stuck
      assert.lengthOf(found, 1)
      assert.match(found[0]!, /^connection to the broker: holds 1 and has not moved for 1\d\d s$/)
    }).pipe(Effect.scoped, Effect.provide(world(() => undefined, connection)), alone)
  })

  it.effect("a connection that has ended for good ends the worker", () =>
    Effect.gen(function* () {
      const running = runWorker({ responseTopic: "response", debug: false })
      const error = yield* Effect.flip(Health.use((health) => health.observing(running)))
      assert.strictEqual(
        error.message,
        "the connection to the broker has ended for good (why): a new start makes a new one",
      )
    }).pipe(
      Effect.scoped,
      Effect.provide(world(undefined, undefined, Effect.fail(new BrokerClosed({ reason: "why" })))),
      alone,
    ),
  )
})
