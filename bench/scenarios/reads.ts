/** Reads: a whole long log, and many small ones beside a full load of appends. */
import { Effect } from "effect"
import { events, publishAll, quantiles, readPages } from "../Client.ts"
import { residentMemory } from "../Processes.ts"
import { add } from "../Report.ts"
import { onFreshServers, Rig, startSystem } from "../Rig.ts"
import { body } from "./drain.ts"

const scenario = "Reads"

const wholeLog = (entries: number) =>
  Effect.gen(function* () {
    const { connection } = yield* Rig
    yield* publishAll(connection, entries, body({ objects: 1, size: 100 }))
    const answered = yield* events(connection, entries)
    yield* Effect.scoped(Effect.andThen(startSystem("objectlog"), answered))
    const { children } = yield* startSystem("objectlog")
    const read = yield* readPages(connection, `{"id":0}`)
    if (read.entries !== entries) {
      return yield* Effect.die(new Error(`expected ${entries} entries, got ${read.entries}`))
    }
    const rate = (read.entries / read.millis) * 1_000
    const memory = yield* residentMemory(children[0]!.pid!, "VmHWM")
    yield* add({
      scenario,
      what: `full read of ${entries.toLocaleString("en-US")} entries, in ${read.pages} pages`,
      value: rate,
      unit: "entries/s",
      bar: { text: "≥ 150,000 entries/s", reached: rate >= 150_000 },
    })
    yield* add({
      scenario,
      what: "memory (RSS) of its worker at its highest",
      value: memory,
      unit: "MiB",
      bar: { text: "≤ 200 MiB", reached: memory <= 200 },
    })
  })

/** Empties a backlog, with so many reads a second of ten entries beside it. */
const besideAppends = (appends: number, readsPerSecond: number) =>
  Effect.gen(function* () {
    const { connection } = yield* Rig
    const seed = 10_000
    const make = body({ objects: 1_000, size: 100 })
    yield* publishAll(connection, seed, make)
    const seeded = yield* events(connection, seed)
    yield* Effect.scoped(Effect.andThen(startSystem("objectlog"), seeded))
    yield* publishAll(connection, appends, make)
    // Events of reads come on the same subject, but for these only appends count.
    const delays: Array<number> = []
    let open = 0
    const inbox = "_INBOX.bench.small"
    const sent = new Map<string, number>()
    const reads = connection.subscribe(inbox, {
      callback: (_, message) => {
        const id = /"request_id":"(\d+)"/.exec(message.string())?.[1]
        const at = id === undefined ? undefined : sent.get(id)
        if (id === undefined || at === undefined) return
        sent.delete(id)
        delays.push(performance.now() - at)
        open--
      },
    })
    yield* Effect.addFinalizer(() => Effect.sync(() => reads.unsubscribe()))
    let seen = 0
    let ended = 0
    const responses = connection.subscribe("response", {
      callback: (_, { data }) => {
        // {"type":"append"…
        if (data[9] === 0x61 && ++seen === appends) ended = performance.now()
      },
    })
    yield* Effect.addFinalizer(() => Effect.sync(() => responses.unsubscribe()))
    yield* Effect.promise(() => connection.flush())
    yield* startSystem("objectlog")
    const started = performance.now()
    let next = 0
    yield* Effect.callback<void>((resume) => {
      const timer = setInterval(() => {
        const due = ended > 0 ? next : ((performance.now() - started) / 1_000) * readsPerSecond
        while (next < due) {
          const id = String(next++)
          sent.set(id, performance.now())
          open++
          connection.publish(
            "query",
            `{"id":${(next * 7919) % 1_000},"limit":10,"request_id":"${id}","reply_to":"${inbox}"}`,
          )
        }
        if (ended === 0 || open > 0) return
        clearInterval(timer)
        resume(Effect.void)
      }, 1)
      return Effect.sync(() => clearInterval(timer))
    })
    return { rate: (appends / (ended - started)) * 1_000, delays: quantiles(Float64Array.from(delays)), reads: next }
  })

/**
 * So many reads of ten entries that are published at once, and as many appends before them, several times: seconds until the last answer,
 * of the round whose ratio is the median.
 */
const burst = (reads: number, rounds: number) =>
  Effect.gen(function* () {
    const { connection } = yield* Rig
    const make = body({ objects: 1_000, size: 100 })
    yield* publishAll(connection, 10_000, make)
    const seeded = yield* events(connection, 10_000)
    yield* startSystem("objectlog")
    yield* seeded
    const timed = Effect.fnUntraced(function* (publish: Effect.Effect<void>) {
      const answered = yield* events(connection, reads)
      const started = performance.now()
      yield* publish
      return ((yield* answered) - started) / 1_000
    })
    const publishReads = Effect.promise(async () => {
      for (let i = 0; i < reads; i++) {
        connection.publish("query", `{"id":${(i * 7919) % 1_000},"limit":10}`)
        if (i % 2_000 === 1_999) await connection.flush()
      }
      await connection.flush()
    })
    // Once before, so that both are measured warm.
    yield* timed(publishReads)
    const found: Array<{ readonly appends: number; readonly reads: number; readonly ratio: number }> = []
    for (let round = 0; round < rounds; round++) {
      const appends = yield* timed(publishAll(connection, reads, make))
      const took = yield* timed(publishReads)
      found.push({ appends, reads: took, ratio: took / appends })
    }
    const sorted = found.toSorted((a, b) => a.ratio - b.ratio)
    return { ...sorted[Math.floor(rounds / 2)]!, ratios: sorted.map(({ ratio }) => ratio.toFixed(1)).join(", ") }
  })

export interface ReadsOptions {
  /** Entries of the log that is read whole. */
  readonly entries: number
  readonly appends: number
}

export const runReads = Effect.fnUntraced(function* ({ entries, appends }: ReadsOptions) {
  yield* onFreshServers(wholeLog(entries))
  const few = yield* onFreshServers(burst(3_000, 9))
  yield* add({
    scenario,
    what: `3,000 small reads at once; in nine rounds ${few.ratios} × as many appends`,
    value: few.reads * 1_000,
    unit: "ms",
    ratio: { of: "as many appends", value: few.ratio },
    bar: { text: "≤ 3 × the appends", reached: few.ratio <= 3 },
  })
  const many = yield* onFreshServers(burst(50_000, 1))
  yield* add({
    scenario,
    what: "50,000 small reads at once",
    value: 50_000 / many.reads,
    unit: "reads/s",
    bar: { text: "≥ 3,000 reads/s", reached: 50_000 / many.reads >= 3_000 },
  })
  const without = yield* onFreshServers(besideAppends(appends, 0))
  const beside = yield* onFreshServers(besideAppends(appends, 1_000))
  yield* add({
    scenario,
    what: `appends beside 1,000 reads/s of 10 entries (${beside.reads} reads)`,
    value: beside.rate,
    unit: "appends/s",
    ratio: { of: "without reads", value: beside.rate / without.rate },
  })
  yield* add({ scenario, what: "those reads, median", value: beside.delays.p50, unit: "ms" })
  yield* add({ scenario, what: "those reads, p99", value: beside.delays.p99, unit: "ms" })
})
