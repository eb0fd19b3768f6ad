/**
 * Reads in memory and under a test's clock: none is handed back or parked that only waits for its turn, none waits for somebody else's
 * long one, and one that fails by its own fault ends.
 */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { layerMemory as brokerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { layerMemory as metricsMemory, Metrics } from "../../src/observe/Metrics.ts"
import * as limits from "../../src/pipeline/limits.ts"
import { runWorker } from "../../src/pipeline/Worker.ts"
import { HashRing, HashRingLive } from "../../src/placement/HashRing.ts"
import { layerMemory as shardsMemory, MemoryShards } from "../../src/shard/Memory.ts"
import { type PageQuery, ShardPool } from "../../src/shard/ShardPool.ts"

const world = (shards: ReadonlyArray<string>, maxPayload = 1024 * 1024) =>
  Layer.mergeAll(
    brokerMemory({ maxPayload }),
    HashRingLive(shards.map((name) => ({ name }))),
    shardsMemory(shards),
    metricsMemory,
  )

const worker = Effect.forkScoped(runWorker({ responseTopic: "response", debug: false }))

/** The first `count` ids of a shard. */
const idsOf = Effect.fnUntraced(function* (shard: string, count: number) {
  const ring = yield* HashRing
  const ids: Array<number> = []
  for (let id = 1; ids.length < count; id++) if (ring.shardOf(ObjectId.make(BigInt(id))) === shard) ids.push(id)
  return ids
})

const baseNanos = 1_763_922_300_000_000_000n

/** Puts entries straight into a shard, a millisecond apart. */
const store = Effect.fnUntraced(function* (shard: string, id: number, logs: ReadonlyArray<string>, from = 1) {
  const pool = yield* ShardPool
  yield* pool.append(
    shard,
    logs.map((log, i) => ({
      id: ObjectId.make(BigInt(id)),
      seq: from + i,
      timestamp: baseNanos + BigInt(from + i) * 1_000_000n,
      log,
      messageId: undefined,
      redelivered: false,
    })),
  )
})

const read = (request: Readonly<Record<string, unknown>>) =>
  MemoryBroker.use((broker) => broker.publishQuery(JSON.stringify(request)))

interface Page {
  readonly request_id: string
  readonly status: string
  readonly snapshot: string
  readonly page: number
  readonly last: boolean
  readonly next?: string
  readonly error?: { readonly code: string; readonly message: string }
  readonly entries: ReadonlyArray<{ readonly position: number; readonly log: string }>
}

/** Parsed so far, of each broker's events. */
const parsed = new WeakMap<object, Array<Page>>()

const pages = MemoryBroker.use((broker) =>
  Effect.sync(() => {
    const events = broker.events()
    let known = parsed.get(events)
    if (known === undefined) parsed.set(events, (known = []))
    for (const { payload } of events.slice(known.length)) known.push(JSON.parse(payload) as Page)
    return known as ReadonlyArray<Page>
  }),
)

const ended = Effect.map(pages, (all) => all.filter((page) => page.last || page.error !== undefined).length)

/** Moves the clock on, until so many reads are answered; a minute at most. */
const untilEnded = Effect.fnUntraced(function* (count: number) {
  for (let i = 0; i < 6_000 && (yield* ended) < count; i++) yield* TestClock.adjust("10 millis")
  assert.strictEqual(yield* ended, count)
})

const parked = Effect.fnUntraced(function* (shards: ReadonlyArray<string>) {
  const metrics = yield* Metrics
  let sum = 0
  for (const shard of shards) {
    sum += yield* metrics.value("handed_back_total", { shard })
    sum += yield* metrics.value("parked_total", { shard, kind: "reads" })
  }
  return sum
})

describe("many reads at once", () => {
  it.effect("are answered in their turn; none is handed back or parked", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const ids = [...(yield* idsOf("a", 5)), ...(yield* idsOf("b", 5))]
      for (const [at, id] of ids.entries()) yield* store(at < 5 ? "a" : "b", id, ["one", "two"])
      for (let i = 0; i < 20_000; i++) yield* read({ id: ids[i % ids.length], request_id: String(i) })
      yield* worker
      yield* untilEnded(20_000)
      const answered = yield* pages
      assert.strictEqual(new Set(answered.map((page) => page.request_id)).size, 20_000)
      assert.isTrue(answered.every(({ entries }) => entries.length === 2))
      assert.strictEqual(yield* parked(["a", "b"]), 0)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b"]))),
  )

  it.effect("of shards that hang leave room for the others', and are answered when those are back", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const names = ["a", "b", "c", "d", "e"]
      const hanging = yield* Effect.forEach(names.slice(0, 4), (shard) => idsOf(shard, 1))
      const [served] = yield* idsOf("e", 1)
      yield* store("e", served!, ["x"])
      yield* worker
      // It is in use, so that the others may not stand in its way.
      yield* read({ id: served })
      yield* untilEnded(1)
      for (const shard of names.slice(0, 4)) yield* shards.setState(shard, "hang")
      for (let i = 0; i < 20_000; i++) yield* read({ id: hanging[i % 4]![0] })
      for (let i = 0; i < 100; i++) yield* read({ id: served, request_id: "served" })
      yield* TestClock.adjust("4 seconds")
      assert.strictEqual((yield* pages).filter((page) => page.request_id === "served").length, 100)
      const parked = names.reduce((sum, name) => sum + broker.parkedFor("reads", name), 0)
      assert.isAbove(parked, 10_000)
      assert.strictEqual(broker.parkedFor("reads", "e"), 0)
      for (const shard of names.slice(0, 4)) yield* shards.setState(shard, "up")
      yield* untilEnded(20_101)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a", "b", "c", "d", "e"]))),
  )

  it.effect("a hundred long ones of one object do not keep another object of its shard waiting", () =>
    Effect.gen(function* () {
      const [large, small] = yield* idsOf("a", 2)
      yield* store(
        "a",
        large!,
        Array.from({ length: 60 }, (_, i) => String(i).padEnd(50_000, "x")),
      )
      yield* store("a", small!, ["small", "y".repeat(600_000), "z".repeat(600_000)])
      for (let i = 0; i < 100; i++) yield* read({ id: large, request_id: `large${i}` })
      yield* read({ id: small, request_id: "long as well" })
      yield* read({ id: small, limit: 1, request_id: "small" })
      yield* worker
      yield* untilEnded(102)
      const order = (yield* pages).filter((page) => page.last).map((page) => page.request_id)
      assert.isBelow(order.indexOf("small"), 3)
      assert.isBelow(order.indexOf("long as well"), 3)
      assert.strictEqual(yield* parked(["a"]), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a"]))),
  )
})

describe("a long read", () => {
  const logs = Array.from({ length: 60 }, (_, i) => String(i).padEnd(100_000, "x"))

  /** The pool, with something done before each later fetch. */
  const watching = (before: (query: PageQuery) => Effect.Effect<unknown, unknown, ShardPool | MemoryBroker>) => {
    const base = world(["a"], 300_000)
    return Layer.effect(
      ShardPool,
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const broker = yield* MemoryBroker
        const services = Context.make(ShardPool, pool).pipe(Context.add(MemoryBroker, broker))
        return {
          ...pool,
          readPage: (shard, query) =>
            Effect.andThen(Effect.orDie(Effect.provideContext(before(query), services)), pool.readPage(shard, query)),
        }
      }),
    ).pipe(Layer.provideMerge(base))
  }

  for (const order of ["asc", "desc", "position"] as const) {
    it.effect(`shows one snapshot, whatever is appended meanwhile and with whatever time (${order})`, () => {
      let seq = 1_000
      // Before, amid and after what is there.
      const appended = Effect.suspend(() =>
        Effect.gen(function* () {
          const pool = yield* ShardPool
          for (const millis of [0, 30, 10_000]) {
            const timestamp = baseNanos + BigInt(millis) * 1_000_000n + BigInt(seq)
            const entry = { id: ObjectId.make(7n), seq: seq++, timestamp, log: "late", messageId: undefined }
            yield* pool.append("a", [{ ...entry, redelivered: false }])
          }
        }),
      )
      return Effect.gen(function* () {
        const shards = yield* MemoryShards
        yield* store("a", 7, logs)
        yield* read(order === "position" ? { id: 7, after_position: 0 } : { id: 7, order })
        yield* worker
        yield* untilEnded(1)
        const all = yield* pages
        assert.isAbove(all.length, 10)
        const shown = all.flatMap(({ entries }) => entries.map(({ position }) => position))
        const expected = logs.map((_, i) => i + 1)
        assert.deepStrictEqual(shown, order === "desc" ? expected.toReversed() : expected)
        assert.strictEqual(new Set(all.map((page) => page.snapshot)).size, 1)
        assert.isAtLeast((yield* shards.entries("a", ObjectId.make(7n))).length, 60 + 3 * 10)
      }).pipe(Effect.scoped, Effect.provide(watching(() => appended)))
    })
  }

  it.effect("that meets a lower max_payload begins anew, with smaller pages", () => {
    let fetches = 0
    const lower = Effect.suspend(() =>
      ++fetches === 5 ? MemoryBroker.use((broker) => broker.setMaxPayload(150_000)) : Effect.void,
    )
    return Effect.gen(function* () {
      yield* store("a", 7, logs)
      yield* read({ id: 7 })
      yield* worker
      yield* untilEnded(1)
      const snapshot = (yield* pages).at(-1)!.snapshot
      const whole = (yield* pages).filter((page) => page.snapshot === snapshot)
      assert.deepStrictEqual(
        whole.map(({ page }) => page),
        whole.map((_, i) => i),
      )
      assert.deepStrictEqual(
        whole.flatMap(({ entries }) => entries.map(({ log }) => log)),
        logs,
      )
    }).pipe(Effect.scoped, Effect.provide(watching(() => lower)))
  })

  it.effect("filtered by time, in the order of commit, looks at a bounded number of entries at a time", () => {
    const queries: Array<PageQuery> = []
    return Effect.gen(function* () {
      const count = 2 * limits.scanEntriesMax + 500
      yield* store(
        "a",
        7,
        Array.from({ length: count }, (_, i) => String(i)),
      )
      const from = Number(baseNanos / 1_000_000n)
      // The last ten, and one that was committed last and is older than all.
      yield* store("a", 7, ["late"], -5)
      yield* read({ id: 7, after_position: 3, from: from + count - 9 })
      yield* read({ id: 7, after_position: 3, to: from })
      yield* worker
      yield* untilEnded(2)
      const found = (yield* pages).map(({ entries }) => entries.map(({ position }) => position))
      assert.deepStrictEqual(found, [Array.from({ length: 10 }, (_, i) => count - 9 + i), [count + 1]])
      for (const { after, scanTo } of queries) {
        const position = after !== undefined && "position" in after ? after.position : 0
        assert.isAtMost(scanTo - position, limits.scanEntriesMax)
      }
      assert.isAtLeast(queries.length, 4)
    }).pipe(Effect.scoped, Effect.provide(watching((query) => Effect.sync(() => queries.push(query)))))
  })
})

describe("a read that fails by its own fault", () => {
  it.effect("is tried some times, then answered with an error and kept; those fetched with it are served", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const shards = yield* MemoryShards
      const metrics = yield* Metrics
      const ids = yield* idsOf("a", 20)
      for (const id of ids) yield* store("a", id, ["x"])
      yield* shards.rejectReads("a", (id) => id === BigInt(ids[7]!))
      for (const id of ids) yield* read({ id, request_id: String(id) })
      yield* worker
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* ended, 19)
      yield* untilEnded(20)
      const [refused] = (yield* pages).filter((page) => page.error !== undefined)
      assert.strictEqual(refused!.request_id, String(ids[7]))
      assert.strictEqual(refused!.error!.code, "read_failed")
      assert.include(refused!.error!.message, "57014")
      assert.deepStrictEqual(
        broker.deadLetters().map(({ code }) => code),
        ["read_failed"],
      )
      assert.isAtLeast(yield* metrics.value("retries_total", { part: "read", reason: "57014" }), limits.readAttempts)
      assert.strictEqual(broker.parkedFor("reads", "a"), 0)
      assert.strictEqual(broker.unsettled(), 0)
    }).pipe(Effect.scoped, Effect.provide(world(["a"]))),
  )

  it.effect(
    "whose entry no longer fits in a page is refused; a short and a long one that were fetched with it are served",
    () =>
      Effect.gen(function* () {
        const broker = yield* MemoryBroker
        const [large, small, long] = yield* idsOf("a", 3)
        yield* store("a", large!, ["x", "x".repeat(20_000)])
        yield* store("a", small!, ["x"])
        const logs = Array.from({ length: 2 * limits.firstEntriesMax }, (_, i) => String(i))
        yield* store("a", long!, logs)
        for (const id of [large, small, long]) yield* read({ id, request_id: String(id) })
        yield* worker
        yield* untilEnded(3)
        const of = (id: number | undefined) =>
          Effect.map(pages, (all) => all.filter((page) => page.request_id === String(id)))
        assert.deepStrictEqual(
          (yield* of(large)).map(({ error }) => error),
          [
            {
              code: "entry_too_large",
              message: "entry 2: needs 20058 bytes, more than the broker's max_payload of 10000 leaves",
            },
          ],
        )
        assert.deepStrictEqual(
          broker.deadLetters().map(({ code }) => code),
          ["entry_too_large"],
        )
        assert.strictEqual((yield* of(small)).length, 1)
        assert.deepStrictEqual(
          (yield* of(long)).flatMap(({ entries }) => entries.map(({ log }) => log)),
          logs,
        )
        assert.strictEqual(broker.unsettled(), 0)
      }).pipe(Effect.scoped, Effect.provide(world(["a"], 10_000))),
  )
})
