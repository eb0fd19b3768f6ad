/**
 * One run: real workers, a real broker and real shards under load and faults; then everything is healed and drained, and
 * all that was stored is checked against all that was sent.
 */
import { type JetStreamManager, jetstreamManager } from "@nats-io/jetstream"
import { Effect, Schedule } from "effect"
import { appendFileSync, copyFileSync, existsSync, mkdirSync, rmSync } from "node:fs"
import { basename, join } from "node:path"
import {
  checkDeadLetters,
  checkObject,
  checkRead,
  type DeadLetter,
  emptyFindings,
  type Findings,
  rowsOf,
} from "./check.ts"
import type { Fault, Targets } from "./Fault.ts"
import { type Kind, kindsFor, makeFault } from "./faults.ts"
import { follow, type Message } from "../foreign/follow.ts"
import { Ledger, placeOf } from "./Ledger.ts"
import { type Monitor, startMonitor } from "./Monitor.ts"
import { bodyOf, startPublisher } from "./Publisher.ts"
import { Randomness } from "./Randomness.ts"
import { makeReadConnection, read } from "../foreign/read.ts"
import { startReader } from "./Reader.ts"
import { makeStorm, type Storm, type Struck } from "./Storm.ts"
import { TestBroker } from "./TestBroker.ts"
import { TestShards } from "./TestShards.ts"
import { startWorkers, type Worker } from "./Workers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

/** What a run's faults are made with. */
export interface FaultTools {
  readonly storm: Storm
  readonly monitor: Monitor
  readonly random: Randomness
  readonly kinds: ReadonlyArray<Kind>
  readonly make: (kind: Kind, longMillis?: number) => Fault
  /** Changes the broker's `ack_wait`. A worker refuses to start with less than 20 s. */
  readonly setAckWait: (millis: number) => Effect.Effect<void>
}

export interface RunOptions {
  readonly seed: number
  readonly workers: number
  readonly objects: number
  /** Appends a second while the broker answers. */
  readonly rate: number
  /** The broker's `ack_wait` when faults begin. A real service has 30 s. */
  readonly ackWaitMillis: number
  /** Where logs of faults and workers go. */
  readonly folder: string
  /** How long the service may take to answer all after the last fault. */
  readonly drainMillis: number
  /** Shows what happens. */
  readonly show: (line: string) => void
  readonly faults: (tools: FaultTools) => Effect.Effect<void>
}

export interface RunReport {
  readonly findings: Findings
  readonly ledger: Ledger
  readonly struck: ReadonlyArray<Struck>
  readonly longestStallMillis: number
  readonly reads: { readonly answered: number; readonly unanswered: number }
  readonly deadLetters: number
  readonly drainedAfterMillis: number
  readonly skipped: string | undefined
}

/** Ids over the whole range, the largest one among them. */
const idsFor = (count: number): ReadonlyArray<bigint> =>
  Array.from({ length: count }, (_, i) => (i % 4 === 3 ? 2n ** 64n - 1n - BigInt(i) : BigInt(1_000 + i)))

/** Tells the ledger of a message of the intake stream. */
const noteStored = (ledger: Ledger, { nanos, seq, text }: Message): void => {
  ledger.stored++
  const place = placeOf(/"request_id":"([^"]*)"\}$/.exec(text())?.[1] ?? "")
  const append = ledger.find(place)
  if (append === undefined) ledger.foreign++
  else append.copies.push({ seq, nanos })
}

/** Tells the ledger of a message of the stream of what was parked. */
const noteParked = (ledger: Ledger, { seq, text }: Message): void => {
  ledger.find(placeOf(/"request_id":"([^"]*)"\}$/.exec(text())?.[1] ?? ""))?.parked.push(seq)
}

/** Tells the ledger of a message of the response stream. */
const noteEvent = (ledger: Ledger, message: Message): void => {
  const text = message.text()
  if (!text.startsWith('{"type":"append"')) return
  const event = JSON.parse(text) as {
    readonly status: "ok" | "error"
    readonly position: number
    readonly seq: number
    readonly timestamp: number
    readonly request_id?: string
  }
  const append = ledger.find(placeOf(event.request_id ?? ""))
  if (append === undefined) return void ledger.foreign++
  const { position, seq, timestamp } = event
  // Not from the parsed value, which is a double.
  const id = /"id":(\d+)/.exec(text)?.[1] ?? ""
  ledger.answer(append, event.status === "ok" ? { id, position, seq, timestamp } : undefined)
}

/** Asks the broker for something until it answers. */
const ask = <A>(urls: string, run: (manager: JetStreamManager) => Promise<A>) =>
  Effect.tryPromise(async () => {
    const connection = await connectTo(urls, { timeout: 2_000 })
    try {
      return await run(await jetstreamManager(connection, { checkAPI: false, timeout: 3_000 }))
    } finally {
      await connection.close()
    }
  }).pipe(Effect.retry({ schedule: Schedule.spaced("200 millis"), times: 100 }), Effect.orDie)

/** The workers' consumers on the streams of requests; followers have some of their own, which are not durable. */
const workersConsumers = async (manager: JetStreamManager) => {
  const found = []
  for (const stream of ["objectlog_logs", "objectlog_query", "objectlog_logs_parked"]) {
    for await (const info of manager.consumers.list(stream)) {
      if (info.config.durable_name !== undefined) found.push(info)
    }
  }
  return found
}

const setAckWait = (urls: string, millis: number) =>
  ask(urls, async (manager) => {
    for (const { name, stream_name } of await workersConsumers(manager)) {
      await manager.consumers.update(stream_name, name, { ack_wait: millis * 1_000_000 })
    }
  })

/** Requests at the broker that are not done, of each consumer that has any. */
const openAtBroker = (urls: string) =>
  ask(urls, workersConsumers).pipe(
    Effect.map((found) =>
      found
        .filter((info) => info.num_pending > 0 || info.num_ack_pending > 0)
        .map(
          (info) =>
            `${info.stream_name} ${info.name}: ${info.num_pending} to deliver, ${info.num_ack_pending} not acknowledged`,
        ),
    ),
  )

/** Ends every fault that may be left; all workers have to serve then, and none may need to be started again for it. */
const heal = Effect.fnUntraced(function* (workers: ReadonlyArray<Worker>, violation: (problem: string) => void) {
  for (const worker of workers)
    for (const link of [...worker.brokerLinks, ...worker.shardLinks]) link.set({ kind: "open" })
  yield* Effect.forEach(
    workers,
    Effect.fnUntraced(function* (worker) {
      if (worker.pid() === undefined) yield* worker.start
      const ready = yield* Effect.timeoutOption(worker.ready, "60 seconds")
      if (ready._tag === "None") return violation(`${worker.name} is not ready 60 s after the last fault`)
      const serves = yield* Effect.timeoutOption(worker.serves, "60 seconds")
      if (serves._tag === "None") violation(`${worker.name} is not ready to work: ${worker.readiness()}`)
    }),
    { concurrency: "unbounded", discard: true },
  )
})

/** Waits until every confirmed append is answered, and the broker has nothing open. */
const drain = (ledger: Ledger, urls: string, withinMillis: number, violation: (problem: string) => void) =>
  Effect.gen(function* () {
    yield* Effect.sync(() => ledger.waiting).pipe(
      Effect.repeat({ until: (waiting) => waiting === 0, schedule: Schedule.spaced("50 millis") }),
    )
    yield* openAtBroker(urls).pipe(
      Effect.repeat({ until: (open) => open.length === 0, schedule: Schedule.spaced("200 millis") }),
    )
  }).pipe(
    Effect.timeoutOrElse({
      duration: withinMillis,
      orElse: () =>
        Effect.map(openAtBroker(urls), (open) => {
          const examples = ledger
            .waitingExamples(5)
            .map((append) => `${append.object.index}.${append.n} (broker: ${append.confirmedSeq})`)
          violation(
            `not drained within ${withinMillis / 1_000} s: ${ledger.waiting} confirmed appends without an event` +
              `${examples.length === 0 ? "" : `, such as ${examples.join(", ")}`}; at the broker ${open.join("; ")}`,
          )
        }),
    }),
  )

export const chaosRun = Effect.fnUntraced(function* (options: RunOptions) {
  const broker = yield* TestBroker
  const shards = yield* TestShards
  const { folder, seed, show } = options
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const findings = emptyFindings()
  const started = Date.now()
  const note = (line: string) => {
    const stamped = `${((Date.now() - started) / 1_000).toFixed(1).padStart(7)} s  ${line}`
    appendFileSync(join(folder, "run.log"), `${stamped}\n`)
    show(stamped)
  }
  const violation = (problem: string) => {
    findings.other++
    findings.problems.push(problem)
    note(`VIOLATION ${problem.slice(0, 400)}`)
  }
  note(`seed ${seed}`)

  const workers = yield* startWorkers(options.workers, folder, violation)
  const ledger = new Ledger(idsFor(options.objects), shards.shardOf, shards.shards.length)
  yield* follow(broker.urls, "objectlog_logs_parked", (message) => noteParked(ledger, message))
  const dead: Array<DeadLetter> = []
  const intake = yield* follow(broker.urls, "objectlog_logs", (message) => noteStored(ledger, message))
  const events = yield* follow(broker.urls, "objectlog_response", (message) => noteEvent(ledger, message))
  const letters = yield* follow(broker.urls, "objectlog_dead", (message) => {
    const seq = Number(message.header("Objectlog-Seq"))
    dead.push({ seq, code: message.header("Objectlog-Code"), payload: message.text() })
  })
  const monitor = yield* startMonitor(ledger)
  const publisher = yield* startPublisher(ledger, {
    servers: broker.urls,
    seed,
    rate: options.rate,
    hotShare: 0.1,
    badShare: 0.003,
    window: 4,
  })
  const reader = yield* startReader(ledger, { servers: broker.urls, seed, perSecond: 4 }, violation)
  // Faults strike a service that is at work.
  yield* Effect.sync(() => ledger.answered).pipe(
    Effect.repeat({ until: (answered) => answered >= 500, schedule: Schedule.spaced("50 millis") }),
  )

  // Not before: consumers are made by workers that are at work.
  yield* setAckWait(broker.urls, options.ackWaitMillis)

  const allSeen = Effect.forEach([intake, events, letters], ({ caughtUp }) => caughtUp, { discard: true })
  const targets: Targets = { broker, shards, workers, ackWaitMillis: options.ackWaitMillis, allSeen, violation }
  const storm = yield* makeStorm(monitor, note)
  const random = new Randomness(seed)
  yield* options.faults({
    storm,
    monitor,
    random,
    kinds: kindsFor(targets),
    make: (kind, longMillis = 0) => makeFault(kind, targets, random, longMillis),
    setAckWait: (millis) => setAckWait(broker.urls, millis),
  })

  note("healing")
  yield* heal(workers, violation)
  const healed = Date.now()
  yield* Effect.timeoutOrElse(publisher.finish, {
    duration: options.drainMillis,
    orElse: () => Effect.sync(() => violation("the publisher's last appends are not settled")),
  })
  yield* drain(ledger, broker.urls, options.drainMillis, violation)
  const drainedAfterMillis = Date.now() - healed
  note(`drained ${drainedAfterMillis} ms after the last fault`)
  yield* Effect.forEach([intake, events, letters], (follower) =>
    Effect.timeoutOrElse(follower.caughtUp, {
      duration: 60_000,
      orElse: () => Effect.sync(() => violation("a stream could not be followed to its end")),
    }),
  )
  if (intake.missed() > 0) violation(`${intake.missed()} stored appends were purged before they were seen`)
  if (events.missed() > 0) violation(`${events.missed()} events were dropped before they were seen`)

  const deadSeqs = new Set(dead.map(({ seq }) => seq))
  const connection = yield* makeReadConnection(broker.urls)
  yield* Effect.forEach(
    ledger.objects,
    Effect.fnUntraced(function* (object) {
      const stored = yield* Effect.orDie(rowsOf(shards, object))
      checkObject(object, stored, deadSeqs, findings)
      const whole = yield* read(connection, { id: object.id }, 60_000)
      checkRead(object, stored.rows, whole?.entries ?? [], "a whole read", findings)
      if (object.index % 8 !== 0) return
      const limit = Math.max(1, Math.ceil(stored.rows.length / 5))
      const joined = []
      for (let after: string | undefined; ;) {
        const fields = { limit, ...(after === undefined ? {} : { after }) }
        const page = yield* read(connection, { id: object.id, fields }, 60_000)
        joined.push(...(page?.entries ?? []))
        after = page?.next
        if (after === undefined) break
      }
      checkRead(object, stored.rows, joined, "a read in pages", findings)
    }),
    { concurrency: 4, discard: true },
  )
  checkDeadLetters(ledger, dead, bodyOf, findings)
  if (findings.problems.length > 0) {
    for (const problem of findings.problems) appendFileSync(join(folder, "problems.log"), `${problem}\n`)
    // The servers' folders go with the run.
    for (const file of [...broker.nodes.map((node) => node.logFile), ...shards.logFiles]) {
      if (existsSync(file)) copyFileSync(file, join(folder, basename(file)))
    }
  }
  const report: RunReport = {
    findings,
    ledger,
    struck: storm.struck,
    longestStallMillis: monitor.longestStallMillis(),
    reads: { answered: reader.answered(), unanswered: reader.unanswered() },
    deadLetters: deadSeqs.size,
    drainedAfterMillis,
    skipped: "skipped" in shards.smallDisk ? `disk full: skipped, ${shards.smallDisk.skipped}` : undefined,
  }
  return report
}, Effect.scoped)
