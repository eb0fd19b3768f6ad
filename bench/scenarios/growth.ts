/** What an append and a first page cost on a short and on a very long log, in a small and in a large database. */
import { Effect } from "effect"
import { HashRing } from "../../src/placement/HashRing.ts"
import { events, publishAll, readPages } from "../Client.ts"
import { add, median } from "../Report.ts"
import { onShard } from "../servers/onShard.ts"
import { onFreshServers, Rig, startSystem } from "../Rig.ts"

const scenario = "Growth"
const rounds = 5
const burst = 10_000
const pageReads = 100
const text = "x".repeat(100)

/** Puts `entries` entries in each of the objects `first` … `last` that live on a shard, behind the service's back. */
const fill = Effect.fnUntraced(function* (first: number, last: number, entries: number) {
  const { shards } = yield* Rig
  const ring = yield* HashRing.make(shards.map(({ name }) => ({ name, weight: 1 })))
  for (const shard of shards) {
    const ids = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter(
      (id) => ring.shardOf(BigInt(id)) === shard.name,
    )
    const list = `{${ids.join(",")}}`
    yield* onShard(shard, (sql) =>
      Effect.gen(function* () {
        yield* sql`insert into objects (id, entries, last_timestamp)
          select id, ${BigInt(entries)}, 1700000000000000000 + ${BigInt(entries)} from unnest(${list}::bigint[]) as own (id)`
        yield* sql`insert into log_entries (object_id, timestamp, seq, position, log, escaped)
          select id, 1700000000000000000 + n, n, n, ${text}, false
          from unnest(${list}::bigint[]) as own (id), generate_series(1, ${BigInt(entries)}) as n`
      }),
    )
  }
})

/** So that no clean-up of the filling runs during the measurement. */
const settle = Effect.gen(function* () {
  const { shards } = yield* Rig
  for (const shard of shards) {
    yield* onShard(shard, (sql) => Effect.andThen(sql`vacuum (analyze) log_entries`, sql`vacuum (analyze) objects`))
    yield* onShard(shard, (sql) => sql`checkpoint`)
  }
})

/** Milliseconds that a burst of appends takes, over these objects in turn. */
const appendBurst = Effect.fnUntraced(function* (ids: ReadonlyArray<number>) {
  const { connection } = yield* Rig
  const answered = yield* events(connection, burst)
  const started = performance.now()
  yield* publishAll(connection, burst, (i) => `{"id":${ids[i % ids.length]},"log":"${text}"}`)
  return (yield* answered) - started
})

/** Entries of a short log, and of the pages that are compared: the answers are of one size. */
const shortLog = 10

/** Median of the milliseconds that a page takes, over these objects in turn. */
const firstPage = Effect.fnUntraced(function* (ids: ReadonlyArray<number>, order: "asc" | "desc", limit = shortLog) {
  const { connection } = yield* Rig
  const times: Array<number> = []
  for (let i = 0; i < pageReads; i++) {
    const read = yield* readPages(connection, `{"id":${ids[i % ids.length]},"limit":${limit},"order":"${order}"}`)
    times.push(read.millis)
  }
  return median(times)
})

/** Measures both in turn and adds the ratio of their medians. */
const compare = Effect.fnUntraced(function* <E, R>(options: {
  readonly what: string
  readonly unit: string
  readonly scale: number
  readonly small: (round: number) => Effect.Effect<number, E, R>
  readonly large: (round: number) => Effect.Effect<number, E, R>
  readonly bar?: number
}) {
  const small: Array<number> = []
  const large: Array<number> = []
  // The first round warms up.
  for (let round = 0; round <= rounds; round++) {
    small.push(yield* options.small(round))
    large.push(yield* options.large(round))
  }
  const [before, after] = [median(small.slice(1)), median(large.slice(1))]
  const ratio = after / before
  yield* add({
    scenario,
    what: options.what,
    value: after * options.scale,
    unit: options.unit,
    ratio: { of: `the small one (${(before * options.scale).toFixed(2)})`, value: ratio },
    ...(options.bar === undefined
      ? {}
      : { bar: { text: `≤ ${options.bar} × the small one`, reached: ratio <= options.bar } }),
  })
})

const perAppend = 1_000 / burst

const ids = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)

/** Objects that live on one shard with object `like`, from `first` on. */
const neighbours = Effect.fnUntraced(function* (like: number, first: number, count: number) {
  const { shards } = yield* Rig
  const ring = yield* HashRing.make(shards.map(({ name }) => ({ name, weight: 1 })))
  const home = ring.shardOf(BigInt(like))
  return ids(first, count * 10)
    .filter((id) => ring.shardOf(BigInt(id)) === home)
    .slice(0, count)
})

export interface GrowthOptions {
  /** Entries of the long log, 10,000,000 in a full run. */
  readonly entries: number
  /** Objects of the large database, 1,000,000 in a full run. */
  readonly objects: number
}

const longLog = 5_000_000

const oneLongLog = (entries: number) =>
  Effect.gen(function* () {
    yield* fill(0, 999, shortLog)
    yield* fill(longLog, longLog, entries)
    const short = yield* neighbours(longLog, 0, 2 * (rounds + 1))
    yield* settle
    yield* startSystem("objectlog")
    const count = entries.toLocaleString("en-US")
    for (const order of ["asc", "desc"] as const) {
      yield* compare({
        what: `${order === "asc" ? "first" : "latest"} ${shortLog} of a log of ${count} entries, beside one of ${shortLog}`,
        unit: "ms",
        scale: 1,
        small: (round) => firstPage([short[round]!], order),
        large: () => firstPage([longLog], order),
        bar: 1.2,
      })
    }
    const what = `latest 100 of a log of ${count} entries`
    yield* add({ scenario, what, value: yield* firstPage([longLog], "desc", 100), unit: "ms" })
    yield* compare({
      what: `append to a log of ${count} entries, beside one of ${shortLog}`,
      unit: "µs",
      scale: perAppend,
      small: (round) => appendBurst([short[rounds + 1 + round]!]),
      large: () => appendBurst([longLog]),
      bar: 1.2,
    })
  })

/** Two databases in turn would need four servers on two cores: one after the other, on the same ones. */
const manyObjects = (objects: number) =>
  Effect.gen(function* () {
    yield* fill(0, 999, 1)
    yield* settle
    yield* startSystem("objectlog")
    const measure = Effect.fnUntraced(function* (all: (round: number) => ReadonlyArray<number>) {
      const appends: Array<number> = []
      const pages: Array<number> = []
      for (let round = 0; round <= rounds; round++) {
        appends.push(yield* appendBurst(all(round)))
        pages.push(yield* firstPage(all(round), "asc"))
      }
      return [median(appends.slice(1)), median(pages.slice(1))] as const
    })
    const small = yield* measure(() => ids(0, 1_000))
    yield* fill(1_000, objects - 1, 1)
    yield* settle
    // A different thousand each time, spread over the whole table.
    const large = yield* measure((round) =>
      ids(0, 1_000).map((i) => 1_000 + ((i * 7_919 + round * 104_729) % (objects - 1_000))),
    )
    for (const [at, what, unit, scale] of [
      [0, "append", "µs", perAppend],
      [1, "first page", "ms", 1],
    ] as const) {
      yield* add({
        scenario,
        what: `${what} in a database of ${objects.toLocaleString("en-US")} objects, beside 1,000`,
        value: large[at] * scale,
        unit,
        ratio: { of: `the small one (${(small[at] * scale).toFixed(2)})`, value: large[at] / small[at] },
      })
    }
  })

export const runGrowth = Effect.fnUntraced(function* ({ entries, objects }: GrowthOptions) {
  yield* onFreshServers(oneLongLog(entries))
  yield* onFreshServers(manyObjects(objects))
})
