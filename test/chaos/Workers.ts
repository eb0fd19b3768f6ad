/** The workers of a run: real processes that reach the broker and the shards through proxies of their own. */
import { Effect, Schedule, type Scope } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { appendFileSync, closeSync, openSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { startReaper } from "../../src/embedded/serverProcess.ts"
import { ports } from "./ports.ts"
import { makeProxy, type TcpProxy } from "../../bench/servers/TcpProxy.ts"
import { TestBroker } from "./TestBroker.ts"
import { TestShards, workerRole } from "./TestShards.ts"

export interface Worker {
  readonly name: string
  readonly brokerLinks: ReadonlyArray<TcpProxy>
  /** In the order of the shards. */
  readonly shardLinks: ReadonlyArray<TcpProxy>
  readonly pid: () => number | undefined
  readonly start: Effect.Effect<void>
  /** Waits until the process that was started last says that it is ready. */
  readonly ready: Effect.Effect<void>
  /** Waits until it says by itself that it can do its work: `/readyz` answers with 200. */
  readonly serves: Effect.Effect<void>
  /** What it last said there. */
  readonly readiness: () => string
  readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** Sends a signal that ends it, and waits for that; gives its exit code, or the signal. Too slow a one is killed. */
  readonly end: (signal: NodeJS.Signals, withinMillis: number) => Effect.Effect<number | NodeJS.Signals | "too slow">
}

const program = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

const exited = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback((resume) => {
    const done = () => resume(Effect.void)
    if (child.exitCode !== null || child.signalCode !== null) return done()
    child.once("exit", done)
    return Effect.sync(() => child.off("exit", done))
  })

/** Makes the slot of one worker; nothing runs in it yet. `ended` hears of a process that ended by itself. */
const makeWorker = Effect.fnUntraced(function* (
  index: number,
  logFolder: string,
  ended: (problem: string) => void,
): Effect.fn.Return<Worker, never, Scope.Scope | TestBroker | TestShards> {
  const broker = yield* TestBroker
  const { shards } = yield* TestShards
  const name = `worker-${index + 1}`
  const logFile = join(logFolder, `${name}.log`)
  const brokerLinks = yield* Effect.forEach(broker.nodes, (node) => makeProxy(node.port))
  const shardLinks = yield* Effect.forEach(shards, (shard) => makeProxy(shard.port))
  const env = {
    PATH: process.env["PATH"],
    HOME: process.env["HOME"],
    NATS_URL: broker.workerUrls
      .split(",")
      .map((url, i) => Object.assign(new URL(url), { port: String(brokerLinks[i]!.port) }).href)
      .join(","),
    NATS_STREAM_REPLICAS: String(broker.replicas),
    METRICS_PORT: String(ports.metrics + index),
    POSTGRES_IPS: shards
      .map(
        ({ name: shard, database }, i) =>
          `${shard}=postgres://${workerRole.name}:${workerRole.password}@127.0.0.1:${shardLinks[i]!.port}/${database}`,
      )
      .join(","),
  }
  let current: { readonly child: ChildProcess; readonly reaper: ChildProcess; readonly logStart: number } | undefined
  let asked = true
  let readiness = "nothing"

  const start = Effect.sync(() => {
    asked = false
    appendFileSync(logFile, `--- started ${new Date().toISOString()}\n`)
    const logStart = readFileSync(logFile).length
    const log = openSync(logFile, "a")
    // In a session of its own, so that Ctrl-C does not end it before the run is over.
    const child = spawn(program, ["worker"], { env, stdio: ["ignore", log, log], detached: true })
    closeSync(log)
    const reaper = startReaper(child.pid!, "SIGKILL")
    child.once("exit", (code, signal) => {
      reaper.kill("SIGKILL")
      appendFileSync(logFile, `--- ended ${new Date().toISOString()} with ${code ?? signal}\n`)
      if (!asked) ended(`${name} (pid ${child.pid}) ended by itself with ${code ?? signal}`)
    })
    current = { child, reaper, logStart }
  })
  const end: Worker["end"] = Effect.fnUntraced(function* (signal, withinMillis) {
    const running = current?.child
    if (running === undefined) return signal
    asked = true
    // One that is stopped would not hear of a gentle signal.
    running.kill("SIGCONT")
    running.kill(signal)
    const found = yield* Effect.timeoutOption(exited(running), withinMillis)
    if (found._tag === "None") {
      running.kill("SIGKILL")
      yield* exited(running)
      return "too slow"
    }
    return running.exitCode ?? running.signalCode!
  })
  yield* Effect.addFinalizer(() => end("SIGKILL", 5_000))
  return {
    name,
    brokerLinks,
    shardLinks,
    pid: () => (current?.child.exitCode === null ? current.child.pid : undefined),
    start,
    ready: Effect.sync(
      () =>
        current !== undefined && readFileSync(logFile).subarray(current.logStart).includes("objectlog worker ready"),
    ).pipe(Effect.delay("50 millis"), Effect.repeat({ until: (isReady) => isReady }), Effect.asVoid),
    serves: Effect.suspend(() => {
      const log = readFileSync(logFile)
        .subarray(current?.logStart ?? 0)
        .toString()
      const address = /metrics on (\S+:\d+)/.exec(log)?.[1]
      return address === undefined
        ? Effect.succeed(false)
        : Effect.tryPromise(async () => {
            const response = await fetch(`http://${address}/readyz`, { signal: AbortSignal.timeout(5_000) })
            readiness = await response.text()
            return response.ok
          }).pipe(Effect.orElseSucceed(() => false))
    }).pipe(Effect.repeat({ until: (is) => is, schedule: Schedule.spaced("100 millis") }), Effect.asVoid),
    readiness: () => readiness,
    signal: (signal) => Effect.sync(() => void current?.child.kill(signal)),
    end,
  }
})

/** Makes the workers and starts them; they are ready when this returns. */
export const startWorkers = Effect.fnUntraced(function* (
  count: number,
  logFolder: string,
  ended: (problem: string) => void,
) {
  const workers = yield* Effect.forEach(Array.from({ length: count }).keys(), (index) =>
    makeWorker(index, logFolder, ended),
  )
  yield* Effect.forEach(workers, (worker) => Effect.andThen(worker.start, worker.ready), {
    concurrency: "unbounded",
    discard: true,
  })
  return workers
})
