/** How fast a backlog is emptied, beside the floors. Every run has servers of its own, and is checked afterwards. */
import { Effect, Schedule, type Scope } from "effect"
import type { ChildProcess } from "node:child_process"
import { events, publishAll } from "../Client.ts"
import { residentMemory } from "../Processes.ts"
import { add, medianRun } from "../Report.ts"
import {
  cpuSoFar,
  onFreshServers,
  Rig,
  startSystem,
  stored,
  storedByFloor,
  type System,
  unacknowledged,
} from "../Rig.ts"

export interface Backlog {
  readonly appends: number
  readonly objects: number
  /** Characters of a log. */
  readonly size: number
}

/** An append over the objects in turn, in an order that does not follow the ids. */
export const body = ({ objects, size }: Omit<Backlog, "appends">): ((i: number) => string) => {
  const text = "x".repeat(size)
  return (i) => `{"id":${(i * 7919) % objects},"log":"${text}"}`
}

interface Drained {
  /** Appends a second. */
  readonly rate: number
  /** Microseconds of CPU for each append. */
  readonly cpu: { readonly worker: number; readonly nats: number; readonly postgres: number }
  readonly memory: number
}

/** Appends for each worker before a measurement: by then the compiler of V8 is through with what is called for each. */
export const warmUpAppends = 50_000

/** Stopped as a shell does it, so that a backlog can grow while they are connected. */
const signalAll = (processes: ReadonlyArray<ChildProcess>, signal: "SIGSTOP" | "SIGCONT") =>
  Effect.sync(() => processes.forEach((process) => process.kill(signal)))

/**
 * `variables` are settings of the workers. `cold`: the backlog is there when they start, and all that a start costs counts;
 * otherwise they have been at work before, as those have that find a backlog after an outage.
 */
export const drain = Effect.fnUntraced(function* (
  system: System,
  workers: number,
  backlog: Backlog,
  {
    cold = false,
    variables = {},
  }: { readonly cold?: boolean; readonly variables?: Readonly<Record<string, string>> } = {},
) {
  const { connection } = yield* Rig
  const { appends, objects, size } = backlog
  const before = cold ? 0 : Math.min(warmUpAppends, appends) * workers
  /** Publishes; what is inside waits until all of it is done, and gives the moment of that. */
  const publish = Effect.fnUntraced(function* (count: number) {
    const answered = system === "B" ? undefined : yield* events(connection, count)
    yield* publishAll(connection, count, body(backlog))
    return (
      answered ??
      unacknowledged().pipe(
        Effect.repeat({ until: (left) => left === 0, schedule: Schedule.spaced("20 millis") }),
        Effect.map(() => performance.now()),
      )
    )
  })
  const start = startSystem(system, workers, objects, { SIZE: String(size), ...variables })
  const begin = Effect.gen(function* () {
    if (cold) {
      const done = yield* publish(appends)
      return { ...(yield* start), done }
    }
    const { children } = yield* start
    yield* yield* publish(before)
    yield* signalAll(children, "SIGSTOP")
    const done = yield* publish(appends)
    yield* signalAll(children, "SIGCONT")
    return { children, ready: performance.now(), done }
  })
  const { children: processes, done, ready } = yield* begin
  const cpuBefore = yield* cpuSoFar(processes)
  const ended = yield* done
  const after = yield* cpuSoFar(processes)
  const memory = Math.max(...(yield* Effect.forEach(processes, (child) => residentMemory(child.pid!, "VmHWM"))))
  if (system === "objectlog") {
    const found = yield* stored
    if (found.entries !== before + appends || found.wrong > 0) {
      return yield* Effect.die(
        new Error(
          `expected ${before + appends} entries without gaps, got ${found.entries}, and ${found.wrong} objects with gaps`,
        ),
      )
    }
  } else {
    const rows = yield* storedByFloor(system)
    if (rows !== before + appends)
      return yield* Effect.die(new Error(`expected ${before + appends} rows of floor ${system}, got ${rows}`))
  }
  const cpu = {
    worker: (after.worker - cpuBefore.worker) / appends,
    nats: (after.nats - cpuBefore.nats) / appends,
    postgres: (after.postgres - cpuBefore.postgres) / appends,
  }
  return { rate: (appends / (ended - ready)) * 1_000, cpu, memory } satisfies Drained
})

/** The median run by rate, with the most memory of all. */
const typical = (runs: ReadonlyArray<Drained>): Drained => {
  return { ...medianRun(runs, ({ rate }) => rate), memory: Math.max(...runs.map(({ memory }) => memory)) }
}

export const totalCpu = ({ cpu }: Drained) => cpu.worker + cpu.nats + cpu.postgres

/** The systems in turn, so that a machine that changes its mood does so for all. */
export const inTurn = Effect.fnUntraced(function* <Name extends string>(
  rounds: number,
  runs: ReadonlyArray<readonly [Name, Effect.Effect<Drained, unknown, Rig | Scope.Scope>]>,
) {
  const results = new Map<Name, Array<Drained>>(runs.map(([name]) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const [name, run] of runs) results.get(name)!.push(yield* onFreshServers(run))
  }
  return (name: Name) => typical(results.get(name)!)
})

export const perAppend = ({ worker, nats, postgres }: Drained["cpu"]) =>
  `CPU µs an append: worker ${worker.toFixed(1)}, nats-server ${nats.toFixed(1)}, PostgreSQL ${postgres.toFixed(1)}`

export const shown = ({ appends, objects, size }: Backlog) =>
  `${appends.toLocaleString("en-US")} appends, ${objects.toLocaleString("en-US")} object${objects === 1 ? "" : "s"}, ${size.toLocaleString("en-US")} B`

const scenario = "Drain of a backlog"

export interface DrainOptions {
  readonly appends: number
  readonly rounds: number
}

/** Returns the drain rate of one worker on the usual backlog. */
export const runDrain = Effect.fnUntraced(function* ({ appends, rounds }: DrainOptions) {
  const usual: Backlog = { appends, objects: 1_000, size: 100 }
  const few: Backlog = { ...usual, appends: appends / 10 }
  const of = yield* inTurn(rounds, [
    ["A", drain("A", 1, usual)],
    ["objectlog", drain("objectlog", 1, usual)],
    ["B", drain("B", 1, few)],
    ["2 workers", drain("objectlog", 2, usual)],
    ["4 workers", drain("objectlog", 4, usual)],
    ["A, cold", drain("A", 1, usual, { cold: true })],
    ["objectlog, cold", drain("objectlog", 1, usual, { cold: true })],
  ] as const)
  const [a, b, one] = [of("A"), of("B"), of("objectlog")]
  yield* add({ scenario, what: `floor A, ${shown(usual)}; ${perAppend(a.cpu)}`, value: a.rate, unit: "appends/s" })
  yield* add({ scenario, what: `floor B, ${shown(few)}; ${perAppend(b.cpu)}`, value: b.rate, unit: "appends/s" })
  const ratioA = one.rate / a.rate
  yield* add({
    scenario,
    what: `one worker, ${shown(usual)}; ${perAppend(one.cpu)}`,
    value: one.rate,
    unit: "appends/s",
    ratio: { of: "floor A", value: ratioA },
    bar: { text: "≥ 0.9 × floor A", reached: ratioA >= 0.9 },
  })
  const ratioB = one.rate / b.rate
  yield* add({
    scenario,
    what: "one worker, beside floor B",
    value: one.rate,
    unit: "appends/s",
    ratio: { of: "floor B", value: ratioB },
    bar: { text: "≥ 8 × floor B", reached: ratioB >= 8 },
  })
  yield* add({
    scenario,
    what: "one worker, memory (RSS) at its highest",
    value: one.memory,
    unit: "MiB",
    bar: { text: "≤ 250 MiB", reached: one.memory <= 250 },
  })
  for (const workers of [2, 4] as const) {
    const several = of(`${workers} workers`)
    const ratio = several.rate / one.rate
    yield* add({
      scenario,
      what: `${workers} workers; ${perAppend(several.cpu)}`,
      value: several.rate,
      unit: "appends/s",
      ratio: { of: "one worker", value: ratio },
      ...(workers === 4 ? { bar: { text: "≥ one worker", reached: ratio >= 1 } } : {}),
    })
  }
  const cold = of("objectlog, cold")
  yield* add({
    scenario,
    what: `one worker that has just started, ${shown(usual)}; ${perAppend(cold.cpu)}`,
    value: cold.rate,
    unit: "appends/s",
    ratio: { of: "floor A that has just started", value: cold.rate / of("A, cold").rate },
  })
  const others: ReadonlyArray<Backlog> = [
    { ...usual, objects: 100_000 },
    { ...usual, objects: 1 },
    { ...usual, size: 1_024 },
    { ...few, size: 16_384 },
  ]
  for (const backlog of others) {
    const on = yield* inTurn(1, [
      ["A", drain("A", 1, backlog)],
      ["objectlog", drain("objectlog", 1, backlog)],
    ] as const)
    const value = on("objectlog")
    yield* add({
      scenario,
      what: `${shown(backlog)}; ${perAppend(value.cpu)}`,
      value: value.rate,
      unit: "appends/s",
      ratio: { of: "floor A", value: value.rate / on("A").rate },
    })
  }
  return one.rate
})
