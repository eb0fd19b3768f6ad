/** What every ShardPool does: one suite, run against the live one and its in-memory twin. Two shards are expected. */
import { assert, layer } from "@effect/vitest"
import { Effect, type Layer } from "effect"
import { compareStamps, type LogEntry, type NewEntry, type Placed } from "../../src/contract/LogEntry.ts"
import type { ObjectId } from "../../src/contract/ObjectId.ts"
import { jsonBytes, logMaxBytes } from "../../src/contract/limits.ts"
import { type PageQuery, ShardPool } from "../../src/shard/ShardPool.ts"

export const id = (value: bigint | number): ObjectId => BigInt(value) as ObjectId

/** Ids that no other test of this process uses. */
let lastId = 1_000_000n
export const freshId = (): ObjectId => id(++lastId)

export const entry = (
  objectId: ObjectId,
  seq: number,
  fields: Partial<Pick<NewEntry, "timestamp" | "log" | "messageId" | "redelivered">> = {},
): NewEntry => ({
  id: objectId,
  seq,
  timestamp: fields.timestamp ?? 1_763_922_300_000_000_000n + BigInt(seq),
  log: fields.log ?? `log ${seq}`,
  messageId: fields.messageId,
  redelivered: fields.redelivered ?? false,
})

export const everything = (objectId: ObjectId, fields: Partial<PageQuery> = {}): PageQuery => ({
  id: objectId,
  order: "asc",
  after: undefined,
  from: undefined,
  to: undefined,
  scanTo: Number.MAX_SAFE_INTEGER,
  upTo: Number.MAX_SAFE_INTEGER,
  maxEntries: 10_000,
  maxBytes: 64 * 1024 * 1024,
  ...fields,
})

/** How many entries an object has. */
export const countIn = (pool: ShardPool["Service"], shard: string, objectId: ObjectId) =>
  Effect.map(
    pool.readFirstPages(shard, { order: "asc", maxBytes: 1, reads: [everything(objectId)] }),
    ([page]) => page!.upTo,
  )

export const count = (shard: string, objectId: ObjectId) => ShardPool.use((pool) => countIn(pool, shard, objectId))

const firstPage = (shard: string, { maxBytes, order, ...read }: PageQuery) =>
  ShardPool.use((pool) => Effect.map(pool.readFirstPages(shard, { order, maxBytes, reads: [read] }), ([page]) => page!))

/** Appends what nothing rejects. */
export const append = (pool: ShardPool["Service"], shard: string, batch: ReadonlyArray<NewEntry>) =>
  Effect.map(pool.append(shard, batch), (outcomes) =>
    outcomes.map((outcome) => {
      if (outcome._tag === "Rejected") throw new Error(`rejected: ${outcome.sqlState}`)
      return outcome
    }),
  )

const positions = (placed: ReadonlyArray<Placed | LogEntry>) => placed.map((at) => at.position)
const seqs = (placed: ReadonlyArray<Placed | LogEntry>) => placed.map((at) => at.seq)
const upTo = (count: number) => Array.from({ length: count }, (_, index) => index + 1)

/** A small random generator with a seed, so that a failure can be repeated. */
const random = (seed: number) => {
  let state = seed
  return (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** What a log is, said as simply as possible. */
class Model {
  readonly entries: Array<NewEntry & { readonly position: number }> = []

  append(batch: ReadonlyArray<NewEntry>): ReadonlyArray<Placed> {
    const placed = new Map<NewEntry, Placed>()
    for (const added of batch.toSorted(compareStamps)) {
      const same = this.entries.find((at) => at.id === added.id && compareStamps(at, added) === 0)
      const twin = this.entries.find(
        (at) => added.messageId !== undefined && at.id === added.id && at.messageId === added.messageId,
      )
      const first = same ?? twin
      const position = first?.position ?? this.of(added.id).length + 1
      if (first === undefined) this.entries.push({ ...added, position })
      const { seq, timestamp } = first ?? added
      const tag = same === undefined && twin !== undefined ? "Duplicate" : "Stored"
      placed.set(added, { _tag: tag, position, seq, timestamp })
    }
    return batch.map((added) => placed.get(added)!)
  }

  of(objectId: ObjectId): ReadonlyArray<LogEntry> {
    return this.entries
      .filter((at) => at.id === objectId)
      .map(({ log, position, seq, timestamp }) => ({ position, timestamp, seq, log }))
  }
}

/** Every page of a read, joined. */
const readAll = Effect.fnUntraced(function* (query: PageQuery) {
  const pool = yield* ShardPool
  const all: Array<LogEntry> = []
  let { after } = query
  while (true) {
    const page = yield* pool.readPage("a", { ...query, after })
    if (page.length === 0) return all
    all.push(...page)
    const last = page.at(-1)!
    after = query.order === "position" ? { position: last.position } : { timestamp: last.timestamp, seq: last.seq }
  }
})

export const shardPoolContract = <R, E>(name: string, pool: Layer.Layer<ShardPool | R, E>): void => {
  layer(pool, { excludeTestServices: true, timeout: "60 seconds" })(`${name}: contract`, (it) => {
    it.effect("gives positions 1 … n without gaps, for each object", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const [a, b] = [freshId(), freshId()]
        const placed = yield* append(pool, "a", [entry(a, 1), entry(b, 2), entry(a, 3), entry(b, 4), entry(a, 5)])
        assert.deepStrictEqual(positions(placed), [1, 1, 2, 2, 3])
        assert.deepStrictEqual(positions(yield* append(pool, "a", [entry(a, 6), entry(b, 7)])), [4, 3])
        assert.strictEqual(yield* count("a", a), 4)
        assert.strictEqual(yield* count("a", freshId()), 0)
        assert.strictEqual(yield* count("b", a), 0)
        assert.deepStrictEqual(yield* append(pool, "a", []), [])
      }),
    )

    it.effect("reads the longest log that is ever accepted, whatever it is made of", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const longest = logMaxBytes(Infinity)
        for (const unit of ["a", "\u0000"]) {
          const a = freshId()
          const bytes = jsonBytes(unit) - 2
          const log = unit.repeat(Math.floor((longest - 2) / bytes))
          yield* append(pool, "a", [entry(a, 1, { log })])
          yield* append(pool, "a", [entry(a, 2)])
          for (const { entries } of [
            yield* firstPage("a", everything(a)),
            { entries: yield* readPage("a", everything(a)) },
          ]) {
            assert.deepStrictEqual(seqs(entries), [1, 2])
            assert.isTrue(entries[0]!.log === log)
          }
        }
      }),
    )

    it.effect("a first page tells how many entries there are, also where it has none of them", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const [a, b] = [freshId(), freshId()]
        yield* append(pool, "a", [entry(a, 3), entry(a, 1), entry(b, 9)])
        yield* append(pool, "a", [entry(a, 2)])
        for (const order of ["asc", "desc", "position"] as const) {
          const whole = yield* firstPage("a", everything(a, { order }))
          assert.deepStrictEqual(
            [whole.upTo, seqs(whole.entries)],
            [3, order === "asc" ? [1, 2, 3] : order === "desc" ? [3, 2, 1] : [1, 3, 2]],
          )
          assert.deepStrictEqual(whole.entries, yield* readPage("a", everything(a, { order })))
          const cut = yield* firstPage("a", everything(a, { order, maxEntries: 1 }))
          assert.deepStrictEqual([cut.upTo, cut.entries.length], [3, 1])
          const none = yield* firstPage("a", everything(a, { order, from: 2n ** 62n }))
          assert.deepStrictEqual(none, { upTo: 3, entries: [], isCut: false })
          assert.deepStrictEqual(yield* firstPage("a", everything(freshId(), { order })), {
            upTo: 0,
            entries: [],
            isCut: false,
          })
        }
      }),
    )

    it.effect("the first pages of several reads have one bound of bytes, and each its own other bounds", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readFirstPages } = pool
        const [a, b, c] = [freshId(), freshId(), freshId()]
        const log = "x".repeat(100)
        yield* append(pool, "a", [
          entry(a, 1, { log }),
          entry(a, 2, { log }),
          entry(b, 3, { log }),
          entry(c, 4),
          entry(c, 5),
        ])
        const whole = (id: ObjectId, fields: Partial<PageQuery> = {}) => everything(id, fields)
        const read = (maxBytes: number) =>
          readFirstPages("a", {
            order: "asc",
            maxBytes,
            reads: [
              whole(b),
              whole(a, { after: { timestamp: entry(a, 1).timestamp, seq: 1 } }),
              whole(freshId()),
              whole(a),
              whole(c, { maxEntries: 1 }),
            ],
          })
        const shown = Effect.map(read(10_000), (pages) =>
          pages.map((page) => [page.upTo, seqs(page.entries), page.isCut]),
        )
        assert.deepStrictEqual(yield* shown, [
          [1, [3], false],
          [2, [2], false],
          [0, [], false],
          [2, [1, 2], false],
          [2, [4], false],
        ])
        const cut = (yield* read(250)).map((page) => [page.upTo, seqs(page.entries), page.isCut])
        assert.deepStrictEqual(cut, [
          [1, [3], false],
          [2, [2], false],
          [0, [], false],
          [2, [1], true],
          [2, [], true],
        ])
      }),
    )

    it.effect("looks at no entry beyond the bound of a scan", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const a = freshId()
        yield* append(
          pool,
          "a",
          Array.from({ length: 10 }, (_, i) => entry(a, i + 1)),
        )
        const query = everything(a, { order: "position", after: { position: 2 }, scanTo: 5 })
        assert.deepStrictEqual(positions(yield* readPage("a", query)), [3, 4, 5])
        assert.deepStrictEqual(positions(yield* readPage("a", { ...query, upTo: 4 })), [3, 4])
        const first = yield* firstPage("a", query)
        assert.deepStrictEqual([first.upTo, positions(first.entries)], [10, [3, 4, 5]])
      }),
    )

    it.effect("gives a repeated batch the same places", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const a = freshId()
        const batch = [entry(a, 1), entry(a, 2, { messageId: "m" }), entry(a, 3)]
        const first = yield* append(pool, "a", batch)
        yield* append(pool, "a", [entry(a, 4)])
        // First as if all of it were new: a pool that has seen that it is not looks up whatever comes then.
        for (const redelivered of [false, true]) {
          const again = batch.map((each) => ({ ...each, redelivered }))
          assert.deepStrictEqual(yield* append(pool, "a", again.slice(1, 2)), first.slice(1, 2))
          // With a new one behind them.
          const both = yield* append(pool, "a", [...again, entry(a, redelivered ? 6 : 5, { redelivered })])
          assert.deepStrictEqual(both.slice(0, 3), first)
          assert.strictEqual(both[3]!.position, redelivered ? 6 : 5)
        }
        assert.strictEqual(yield* count("a", a), 6)
        // Overlapping with new ones, and twice in one batch.
        const overlapping = yield* append(pool, "a", [entry(a, 3), entry(a, 7), entry(a, 7)])
        assert.deepStrictEqual(positions(overlapping), [3, 7, 7])
        assert.isTrue(overlapping.every((at) => at._tag === "Stored"))
      }),
    )

    it.effect("knows a message id again, whatever characters it has", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const objectId = freshId()
        for (const [index, messageId] of ["\ufeffm\ufffd", "m\ufffd", "\ufeffm", "m", "é\u2028"].entries()) {
          const first = entry(objectId, 2 * index + 1, { messageId })
          const [placed] = yield* append(pool, "a", [first])
          assert.strictEqual(placed!.position, index + 1)
          const again = entry(objectId, 2 * index + 2, { messageId })
          assert.deepStrictEqual(yield* append(pool, "a", [again]), [{ ...placed!, _tag: "Duplicate" }])
        }
      }),
    )

    it.effect("adds one entry for a message id of an object, for ever", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const [a, b] = [freshId(), freshId()]
        const messageId = "m1"
        const within = yield* append(pool, "a", [
          entry(a, 1, { messageId }),
          entry(a, 2, { messageId }),
          entry(b, 3, { messageId }),
        ])
        assert.deepStrictEqual(
          within.map(({ _tag, position, seq }) => [position, seq, _tag]),
          [
            [1, 1, "Stored"],
            [1, 1, "Duplicate"],
            [1, 3, "Stored"],
          ],
        )
        const [across] = yield* append(pool, "a", [entry(a, 9, { messageId })])
        assert.deepStrictEqual([across!.position, across!.seq, across!._tag], [1, 1, "Duplicate"])
      }),
    )

    it.effect("takes later stamps first, and sorts by stamp but counts by commit", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const a = freshId()
        yield* append(pool, "a", [entry(a, 10), entry(a, 8)])
        yield* append(pool, "a", [entry(a, 9), entry(a, 7)])
        assert.deepStrictEqual(seqs(yield* readPage("a", everything(a))), [7, 8, 9, 10])
        assert.deepStrictEqual(seqs(yield* readPage("a", everything(a, { order: "desc" }))), [10, 9, 8, 7])
        assert.deepStrictEqual(seqs(yield* readPage("a", everything(a, { order: "position" }))), [8, 10, 7, 9])
      }),
    )

    it.effect("keeps ids exact over the whole range", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const ids = [0n, 2n ** 53n + 1n, 2n ** 53n, 2n ** 63n, 2n ** 63n - 1n, 2n ** 64n - 1n].map(id)
        yield* append(
          pool,
          "a",
          ids.map((value, index) => entry(value, index + 1, { log: String(value) })),
        )
        for (const value of ids) {
          assert.deepStrictEqual(
            (yield* readPage("a", everything(value))).map((at) => at.log),
            [String(value)],
          )
        }
      }),
    )

    it.effect("returns every text character for character", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const a = freshId()
        const logs = [
          "",
          "\u0000",
          "\ufeffa",
          "\ufeffa\ufffd",
          'a\u0000b\\u0000"',
          "\ud800",
          "x\udc00\ud800y",
          "🦜 naïve ☃",
          "\r\n\t",
          "x".repeat(900 * 1024),
        ]
        yield* append(
          pool,
          "a",
          logs.map((log, index) => entry(a, index + 1, { log })),
        )
        assert.deepStrictEqual(
          (yield* readPage("a", everything(a))).map((at) => at.log),
          logs,
        )
      }),
    )

    it.effect("bounds pages by entries, bytes, time, position and cursor", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { readPage } = pool
        const a = freshId()
        const stamp = (seq: number) => BigInt(Math.ceil(seq / 2)) * 1_000n
        yield* append(
          pool,
          "a",
          upTo(10).map((seq) => entry(a, seq, { timestamp: stamp(seq), log: "x".repeat(100) })),
        )
        const read = (fields: Partial<PageQuery>) => Effect.map(readPage("a", everything(a, fields)), seqs)
        assert.deepStrictEqual(yield* read({ maxEntries: 3 }), [1, 2, 3])
        assert.deepStrictEqual(yield* read({ maxBytes: 1 }), [1])
        assert.deepStrictEqual(yield* read({ maxBytes: 200 }), [1, 2])
        assert.deepStrictEqual(yield* read({ maxBytes: 201 }), [1, 2, 3])
        assert.deepStrictEqual(yield* read({ order: "desc", maxBytes: 250 }), [10, 9, 8])
        assert.deepStrictEqual(yield* read({ order: "position", maxBytes: 250 }), [1, 2, 3])
        assert.deepStrictEqual(yield* read({ from: 2_000n, to: 4_000n }), [3, 4, 5, 6])
        assert.deepStrictEqual(yield* read({ order: "desc", from: 2_000n, to: 4_000n }), [6, 5, 4, 3])
        assert.deepStrictEqual(yield* read({ order: "position", from: 2_000n, to: 4_000n }), [3, 4, 5, 6])
        assert.deepStrictEqual(yield* read({ from: 4_000n, to: 2_000n }), [])
        assert.deepStrictEqual(yield* read({ from: -(2n ** 70n), to: 2n ** 70n, maxEntries: 1 }), [1])
        assert.deepStrictEqual(yield* read({ upTo: 4 }), [1, 2, 3, 4])
        assert.deepStrictEqual(yield* read({ order: "desc", upTo: 4, maxEntries: 2 }), [4, 3])
        assert.deepStrictEqual(yield* read({ after: { timestamp: stamp(7), seq: 7 } }), [8, 9, 10])
        assert.deepStrictEqual(yield* read({ order: "desc", after: { timestamp: stamp(4), seq: 4 } }), [3, 2, 1])
        assert.deepStrictEqual(yield* read({ order: "position", after: { position: 7 } }), [8, 9, 10])
        assert.deepStrictEqual(
          yield* read({ after: { timestamp: stamp(2), seq: 2 }, from: 3_000n, upTo: 7 }),
          [5, 6, 7],
        )
        // A cursor outside of the times that are asked for does not widen them.
        const late = { timestamp: stamp(9), seq: 9 }
        const early = { timestamp: stamp(1), seq: 1 }
        assert.deepStrictEqual(yield* read({ order: "desc", after: late, from: 2_000n, to: 4_000n }), [6, 5, 4, 3])
        assert.deepStrictEqual(yield* read({ order: "asc", after: early, from: 2_000n, to: 4_000n }), [3, 4, 5, 6])
        assert.deepStrictEqual(yield* read({ order: "desc", after: early, from: 2_000n, to: 4_000n }), [])
        assert.deepStrictEqual(yield* read({ order: "asc", after: late, from: 2_000n, to: 4_000n }), [])
      }),
    )

    it.effect("agrees with the model on random batches with repetitions", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const below = random(42)
        const ids = Array.from({ length: 5 }, freshId)
        const model = new Model()
        const known: Array<NewEntry> = []
        for (let round = 0; round < 60; round++) {
          const batch = Array.from({ length: 1 + below(30) }, (): NewEntry => {
            if (known.length > 0 && below(4) === 0) {
              return { ...known[below(known.length)]!, redelivered: below(2) === 0 }
            }
            const seq = known.length + 1
            const added = entry(ids[below(ids.length)]!, seq, {
              timestamp: BigInt(1 + below(500)),
              log: `log ${seq}`,
              ...(below(3) === 0 ? { messageId: `m${below(40)}` } : {}),
            })
            known.push(added)
            return added
          })
          const expected = model.append(batch)
          assert.deepStrictEqual(yield* append(pool, "a", batch), expected)
        }
        for (const objectId of ids) {
          const stored = model.of(objectId)
          assert.deepStrictEqual(positions(stored), upTo(stored.length))
          const sorted = stored.toSorted(compareStamps)
          assert.deepStrictEqual(yield* readAll(everything(objectId, { maxEntries: 7 })), sorted)
          const newest = yield* readAll(everything(objectId, { order: "desc", maxBytes: 20 }))
          assert.deepStrictEqual(newest, sorted.toReversed())
          assert.deepStrictEqual(yield* readAll(everything(objectId, { order: "position", maxEntries: 9 })), stored)
        }
      }),
    )

    it.effect("counts what is in use, and gives everything back", () =>
      Effect.gen(function* () {
        const pool = yield* ShardPool
        const { usage } = pool
        const ids = Array.from({ length: 20 }, freshId)
        yield* Effect.forEach(ids, (objectId) => append(pool, "a", [entry(objectId, 1)]), { concurrency: "unbounded" })
        const none = { inUse: 0, waiting: 0 }
        assert.deepStrictEqual(usage(), [
          { shard: "a", append: none, read: none },
          { shard: "b", append: none, read: none },
        ])
      }),
    )

    it.effect("says that the shards are healthy", () =>
      Effect.gen(function* () {
        const { health } = yield* ShardPool
        assert.deepStrictEqual(
          (yield* health).map((at) => at.ok),
          [true, true],
        )
      }),
    )
  })
}
