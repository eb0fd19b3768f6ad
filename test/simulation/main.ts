/**
 * `npm run simulate`: many seeds, or one with its trace. Options: `--seeds N`, `--from N`, `--seed N`, `--threads N`,
 * `--mutations N` (each deliberate mistake with N seeds at most).
 */
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import { Coverage, faultClasses } from "./faults.ts"
import { coverageTable, mutationTable } from "./report.ts"
import { simulate } from "./simulate.ts"

// Runs make many errors on purpose, and nobody reads where.
Error.stackTraceLimit = 0

/** Seeds of one thread. Fibers of killed processes never end, and something of each run is kept: threads are replaced. */
const seedsOfThread = 500

interface Share {
  readonly first: number
  readonly step: number
  readonly end: number
}

/** What a thread tells of one seed. */
interface Told {
  readonly seed: number
  readonly violations: ReadonlyArray<string>
  readonly struck: ReadonlyArray<number>
  readonly appends: number
  readonly events: number
  readonly reads: number
  readonly virtualMillis: number
}

const tell = (seed: number): Told => {
  try {
    const { coverage, ...run } = simulate(seed)
    return { ...run, struck: faultClasses.map((name) => coverage.of(name)) }
  } catch (error) {
    const violations = [`the simulation failed: ${String(error)}`]
    return { seed, violations, struck: [], appends: 0, events: 0, reads: 0, virtualMillis: 0 }
  }
}

/** A thread's part: every so many-th seed. */
const runShare = ({ end, first, step }: Share): void => {
  for (let seed = first; seed < end; seed += step) parentPort!.postMessage(tell(seed))
}

const replay = (seed: number): boolean => {
  const run = simulate(seed, { traced: true })
  console.log(run.trace)
  console.log(coverageTable(run.coverage))
  for (const violation of run.violations) console.log(`seed ${seed}: ${violation}`)
  console.log(`seed ${seed}: ${run.appends} appends, ${run.reads} reads, ${run.violations.length} violations`)
  return run.violations.length === 0
}

const runMany = async (from: number, seeds: number, threads: number): Promise<boolean> => {
  const coverage = new Coverage()
  const started = Date.now()
  const sums = { done: 0, failed: 0, appends: 0, events: 0, reads: 0, virtualHours: 0 }
  const receive = (told: Told) => {
    sums.done++
    sums.appends += told.appends
    sums.events += told.events
    sums.reads += told.reads
    sums.virtualHours += told.virtualMillis / 3_600_000
    told.struck.forEach((times, at) => coverage.strike(faultClasses[at]!, times))
    if (told.violations.length > 0) {
      sums.failed++
      console.log(`${told.violations[0]}\n  again: npm run simulate -- --seed ${told.seed}`)
    }
    if (sums.done % 500 === 0) {
      console.log(`${sums.done} of ${seeds} seeds, ${((Date.now() - started) / 1000).toFixed(0)} s`)
    }
  }
  const run = (share: Share) =>
    new Promise<void>((resolve, reject) => {
      // A run makes much that lives shortly.
      const resourceLimits = { maxYoungGenerationSizeMb: 64 }
      const worker = new Worker(new URL(import.meta.url), { workerData: share, resourceLimits })
      worker.on("message", receive)
      worker.on("error", reject)
      worker.on("exit", () => resolve())
    })
  const end = from + seeds
  await Promise.all(
    Array.from({ length: threads }, async (_, at) => {
      for (let first = from + at; first < end; first += seedsOfThread * threads) {
        await run({ first, step: threads, end: Math.min(end, first + seedsOfThread * threads) })
      }
    }),
  )
  const seconds = (Date.now() - started) / 1000
  console.log(coverageTable(coverage))
  console.log(
    `${sums.done} seeds from ${from} in ${seconds.toFixed(0)} s (${(sums.done / seconds).toFixed(1)} per s): ` +
      `${sums.appends} appends, ${sums.events} events, ${sums.reads} reads, ${sums.virtualHours.toFixed(0)} h of simulated time, ` +
      `${sums.failed} seeds failed`,
  )
  return sums.failed === 0 && sums.done === seeds
}

const main = async (): Promise<boolean> => {
  const { values } = parseArgs({
    options: {
      seeds: { type: "string", default: "1000" },
      from: { type: "string", default: "1" },
      seed: { type: "string" },
      threads: { type: "string", default: String(Math.max(1, availableParallelism())) },
      mutations: { type: "string" },
    },
  })
  if (values.seed !== undefined) return replay(Number(values.seed))
  if (values.mutations !== undefined) {
    const { caught, text } = mutationTable(Number(values.mutations))
    console.log(text)
    return caught
  }
  return runMany(Number(values.from), Number(values.seeds), Number(values.threads))
}

if (isMainThread) process.exitCode = (await main()) ? 0 : 1
else runShare(workerData as Share)
