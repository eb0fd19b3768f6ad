/**
 * Isolation, measured: one of three shards stopped for minutes under a constant load; and one object that gets nine tenths
 * of the load of four workers.
 */
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect, Schedule } from "effect"
import { mkdirSync, readFileSync, rmSync } from "node:fs"
import { type Load, startLoad, type Stretch } from "./Load.ts"
import { Randomness } from "./Randomness.ts"
import { TestBroker } from "./TestBroker.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestShards } from "./TestShards.ts"
import { startWorkers, type Worker } from "./Workers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

export interface IsolationOptions {
  readonly seed: number
  /** Appends a second. */
  readonly rate: number
  /** How long the shard is stopped. */
  readonly millis: number
  readonly folder: string
  readonly show: (line: string) => void
}

/** A figure, and whether it is as good as it must be. */
export interface Figure {
  readonly what: string
  readonly measured: string
  readonly wanted: string
  readonly holds: boolean
}

const objects = 600
const text = "x".repeat(100)
const sampleMillis = 1_000

const quantile = (sorted: ReadonlyArray<number>, q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN

const perSecond = ({ events, millis }: Stretch) => (events / millis) * 1_000
const shown = (number: number) => Math.round(number).toLocaleString("en-US")
const millisOf = (number: number) => `${number.toFixed(1)} ms`

const residentMegabytes = (worker: Worker): number => {
  const pid = worker.pid()
  if (pid === undefined) return 0
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1_024
}

/** Follows what must not grow, every second: the workers' memory, and what is under way in the intake. */
const watch = Effect.fnUntraced(function* (urls: string, workers: ReadonlyArray<Worker>) {
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(urls)),
    (open) => Effect.promise(() => open.close()),
  )
  const manager = yield* Effect.promise(() => jetstreamManager(connection))
  let megabytes = 0
  let ackPending = 0
  let ackPendingMax = 0
  yield* Effect.tryPromise(async () => {
    megabytes = Math.max(megabytes, ...workers.map(residentMegabytes))
    const info = await manager.consumers.info("objectlog_logs", "objectlog")
    ackPending = Math.max(ackPending, info.num_ack_pending)
    ackPendingMax = info.config.max_ack_pending ?? 0
  }).pipe(Effect.ignore, Effect.andThen(Effect.sleep(sampleMillis)), Effect.forever, Effect.forkScoped)
  return {
    /** The highest since the last call. */
    highest: () => {
      const found = { megabytes, ackPending, ackPendingMax }
      megabytes = 0
      ackPending = 0
      return found
    },
  }
})

const answeredAll = (load: Load, group: number) =>
  Effect.sync(() => load.open(group)).pipe(
    Effect.repeat({ until: (open) => open === 0, schedule: Schedule.spaced("50 millis") }),
  )

/** Entries in all shards, objects with a gap in their positions, and deadlocks that the shards have seen. */
const inDatabases = Effect.gen(function* () {
  const { shards } = yield* TestShards
  let entries = 0
  let gaps = 0
  let deadlocks = 0
  for (const shard of shards) {
    const [row] = yield* onShard(
      shard,
      (sql) => sql<{ entries: bigint; gaps: bigint; deadlocks: bigint }>`
        select (select count(*) from log_entries) as entries,
          (select count(*) from objects o where entries <> (select count(*) from log_entries e
            where e.object_id = o.id and position between 1 and o.entries)) as gaps,
          (select deadlocks from pg_stat_database where datname = current_database()) as deadlocks`,
    ).pipe(Effect.orDie)
    entries += Number(row!.entries)
    gaps += Number(row!.gaps)
    deadlocks += Number(row!.deadlocks)
  }
  return { entries, gaps, deadlocks }
})

const prepare = (folder: string) => {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
}

const ids = Array.from({ length: objects }, (_, i) => BigInt(1_000 + i))

/** One of three shards is stopped; groups are 0, its objects, and 1, those of the others. */
export const stoppedShard = Effect.fnUntraced(function* (options: IsolationOptions) {
  const { folder, millis, rate, show } = options
  const broker = yield* TestBroker
  const { shardOf, shards } = yield* TestShards
  prepare(folder)
  const ended: Array<string> = []
  const workers = yield* startWorkers(3, folder, (problem) => ended.push(problem))
  const random = new Randomness(options.seed)
  const stopped = 1
  const beforeMillis = Math.max(20_000, millis / 10)
  const load = yield* startLoad({
    servers: broker.urls,
    ids,
    groups: 2,
    groupOf: (object) => (shardOf(ids[object]!) === stopped ? 0 : 1),
    most: Math.ceil(((millis + 2 * beforeMillis + 180_000) * rate) / 1_000),
    text,
  })
  const watched = yield* watch(broker.urls, workers)
  load.set(rate, () => random.between(0, objects - 1))
  // Warm first: code that is compiled, plans that are cached, files that have grown.
  yield* Effect.sleep(beforeMillis)
  load.stretch()
  watched.highest()
  yield* Effect.sleep(beforeMillis)
  const [, before] = load.stretch()
  const memoryBefore = watched.highest().megabytes
  show(`${shards[stopped]!.name} is stopped for ${millis / 1_000} s`)
  yield* shards[stopped]!.control.stop("SIGQUIT")
  yield* Effect.sleep(millis)
  const [, during] = load.stretch()
  const waiting = load.open(0)
  const highest = watched.highest()
  const returned = performance.now()
  yield* Effect.orDie(shards[stopped]!.control.start)
  show(`${shards[stopped]!.name} is back, ${shown(waiting)} appends wait for it`)
  // The load goes on: what counts is that those which waited are done, and no more wait than usual.
  yield* Effect.sync(() => load.open(0)).pipe(
    Effect.repeat({ until: (open) => open < rate / 10, schedule: Schedule.spaced("20 millis") }),
    Effect.timeoutOption("170 seconds"),
  )
  const caughtUpMillis = performance.now() - returned
  load.set(0, () => 0)
  yield* Effect.timeoutOption(Effect.andThen(answeredAll(load, 0), answeredAll(load, 1)), "60 seconds")
  const unanswered = load.open(0) + load.open(1)
  const stored = yield* inDatabases
  const memoryAfter = watched.highest().megabytes
  const p99 = [quantile(before!.delays, 0.99), quantile(during!.delays, 0.99)] as const
  const share = perSecond(during!) / perSecond(before!)
  const figures: ReadonlyArray<Figure> = [
    {
      what: "throughput of the other shards, before / during",
      measured: `${shown(perSecond(before!))} / ${shown(perSecond(during!))} per s (${(share * 100).toFixed(1)} %)`,
      wanted: "90 %",
      holds: share >= 0.9,
    },
    {
      what: "their delay from publish to event, p50, before / during",
      measured: `${millisOf(quantile(before!.delays, 0.5))} / ${millisOf(quantile(during!.delays, 0.5))}`,
      wanted: "",
      holds: true,
    },
    {
      what: "their delay from publish to event, p99, before / during",
      measured: `${millisOf(p99[0])} / ${millisOf(p99[1])}`,
      wanted: "2 ×",
      holds: p99[1] <= 2 * p99[0],
    },
    {
      what: "appends of the stopped shard that waited",
      measured: shown(waiting),
      wanted: "",
      holds: true,
    },
    {
      what: "not acknowledged in the intake at a time, highest / max_ack_pending",
      measured: `${shown(highest.ackPending)} / ${shown(highest.ackPendingMax)}`,
      wanted: "below it",
      holds: highest.ackPending < highest.ackPendingMax,
    },
    {
      what: "memory of a worker (RSS), highest before / during / after",
      measured: `${shown(memoryBefore)} / ${shown(highest.megabytes)} / ${shown(memoryAfter)} MiB`,
      wanted: "1.25 × during",
      holds: highest.megabytes <= 1.25 * memoryBefore,
    },
    {
      what: "all that waited are done after the shard's return",
      measured: `${(caughtUpMillis / 1_000).toFixed(1)} s`,
      wanted: "60 s",
      holds: caughtUpMillis <= 60_000,
    },
    {
      what: "sent / entries / without an event / objects with a gap",
      measured: `${shown(load.sent())} / ${shown(stored.entries)} / ${unanswered} / ${stored.gaps}`,
      wanted: "all, none, none",
      holds: stored.entries === load.sent() && unanswered === 0 && stored.gaps === 0,
    },
    {
      what: "workers that ended by themselves",
      measured: String(ended.length),
      wanted: "0",
      holds: ended.length === 0,
    },
  ]
  return figures
}, Effect.scoped)

/** One object gets nine tenths of what four workers do; groups are 0, that object, and 1, the others. */
export const hotObject = Effect.fnUntraced(function* (options: IsolationOptions) {
  const { folder, millis, rate, show } = options
  const broker = yield* TestBroker
  prepare(folder)
  const ended: Array<string> = []
  const workers = yield* startWorkers(4, folder, (problem) => ended.push(problem))
  const random = new Randomness(options.seed)
  const load = yield* startLoad({
    servers: broker.urls,
    ids,
    groups: 2,
    groupOf: (object) => (object === 0 ? 0 : 1),
    most: Math.ceil(((3 * millis + 60_000) * rate) / 1_000),
    text,
  })
  const watched = yield* watch(broker.urls, workers)
  const earlier = yield* inDatabases
  load.set(rate, () => random.between(1, objects - 1))
  yield* Effect.sleep(millis / 2)
  load.stretch()
  yield* Effect.sleep(millis / 2)
  const [, even] = load.stretch()
  show("nine tenths go to one object")
  load.set(rate, () => (random.chance(0.9) ? 0 : random.between(1, objects - 1)))
  yield* Effect.sleep(millis)
  const [hot, others] = load.stretch()
  load.set(0, () => 0)
  yield* Effect.timeoutOption(Effect.andThen(answeredAll(load, 0), answeredAll(load, 1)), "60 seconds")
  const unanswered = load.open(0) + load.open(1)
  const stored = yield* inDatabases
  const entries = stored.entries - earlier.entries
  const deadlocks = stored.deadlocks - earlier.deadlocks
  const p99 = [quantile(even!.delays, 0.99), quantile(others!.delays, 0.99)] as const
  const delays = (stretch: Stretch) =>
    `${millisOf(quantile(stretch.delays, 0.5))} / ${millisOf(quantile(stretch.delays, 0.99))} / ${millisOf(stretch.delays.at(-1) ?? Number.NaN)}`
  const figures: ReadonlyArray<Figure> = [
    { what: "evenly spread: delay, p50 / p99 / longest", measured: delays(even!), wanted: "", holds: true },
    { what: "hot object: appends", measured: `${shown(perSecond(hot!))} per s`, wanted: "", holds: true },
    { what: "hot object: delay, p50 / p99 / longest", measured: delays(hot!), wanted: "", holds: true },
    { what: "others: appends", measured: `${shown(perSecond(others!))} per s`, wanted: "", holds: true },
    {
      what: "others: delay, p50 / p99 / longest",
      measured: delays(others!),
      wanted: "p99 2 × evenly",
      holds: p99[1] <= 2 * p99[0],
    },
    { what: "deadlocks", measured: String(deadlocks), wanted: "0", holds: deadlocks === 0 },
    {
      what: "memory of a worker (RSS), highest",
      measured: `${shown(watched.highest().megabytes)} MiB`,
      wanted: "",
      holds: true,
    },
    {
      what: "sent / entries / without an event / objects with a gap",
      measured: `${shown(load.sent())} / ${shown(entries)} / ${unanswered} / ${stored.gaps}`,
      wanted: "all, none, none",
      holds: entries === load.sent() && unanswered === 0 && stored.gaps === 0,
    },
    {
      what: "workers that ended by themselves",
      measured: String(ended.length),
      wanted: "0",
      holds: ended.length === 0,
    },
  ]
  return figures
}, Effect.scoped)

export const isolationTable = (figures: ReadonlyArray<Figure>): string =>
  [
    "| what | measured | wanted | holds |",
    "| --- | --- | --- | --- |",
    ...figures.map(
      ({ holds, measured, wanted, what }) => `| ${what} | ${measured} | ${wanted} | ${holds ? "yes" : "NO"} |`,
    ),
  ].join("\n")
