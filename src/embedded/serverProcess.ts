/**
 * Server processes that can't outlive us.
 *
 * They run in sessions of their own, so that the terminal's Ctrl-C reaches only the parent, which stops them in order.
 * Should the parent be killed outright, a reaper ends them: a shell that waits on a pipe whose other end dies with us.
 */
import { Effect, Schema, type Scope } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { closeSync, openSync } from "node:fs"
import { readFile } from "node:fs/promises"

/** A server could not be started, or ended at once. */
export class ServerFailed extends Schema.TaggedError<ServerFailed>()("ServerFailed", {
  server: Schema.String,
  problem: Schema.String,
}) {
  override get message(): string {
    return `${this.server}: ${this.problem}`
  }
}

export interface Account {
  readonly uid: number
  readonly gid: number
}

export interface ServerSpec {
  readonly name: string
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly logFile: string
  readonly account: Account | undefined
  /** The signal of an orderly, quick stop. */
  readonly stopSignal: "SIGINT" | "SIGTERM"
  /** Is the process with this pid ready to serve? Asked again and again. */
  readonly ready: (pid: number) => Effect.Effect<boolean>
}

/** How long a server may take to become ready, and to stop before it is killed. */
const startMillis = 15_000
const stopMillis = 3_000

/** A running server, which tests and chaos may kill and start again on the same data. */
export interface ServerControl {
  readonly pid: () => number
  /** Sends a signal and waits for the end; a second, forceful one follows after three seconds. */
  readonly stop: (signal: NodeJS.Signals) => Effect.Effect<void>
  readonly start: Effect.Effect<void, ServerFailed>
}

const exited = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    child.once("exit", () => resume(Effect.void))
  })

const reaperScript = 'trap "" INT TERM HUP; read _; kill "-$1" "$2" 2>/dev/null'

/** Ends a process with a signal should this one be killed; itself to be killed before the process is forgotten. */
export const startReaper = (pid: number, signal: string): ChildProcess => {
  const reaper = spawn("/bin/sh", ["-c", reaperScript, "objectlog-reaper", signal.slice(3), String(pid)], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
    cwd: "/",
  })
  reaper.on("error", () => undefined)
  reaper.unref()
  return reaper
}

const lastLines = (file: string): Effect.Effect<string> =>
  Effect.promise(() => readFile(file, "utf8").catch(() => "")).pipe(
    Effect.map((text) => text.trim().split("\n").slice(-3).join(" | ").slice(-600)),
  )

/** Starts a server and waits until it is ready; stops it when the scope closes. */
export const startServer = Effect.fnUntraced(function* (
  spec: ServerSpec,
): Effect.fn.Return<ServerControl, ServerFailed, Scope.Scope> {
  let child: ChildProcess | undefined
  let reaper: ChildProcess | undefined

  const stop = Effect.fnUntraced(function* (signal: NodeJS.Signals) {
    const current = child
    if (current === undefined) return
    current.kill(signal)
    const ended = yield* Effect.timeoutOption(exited(current), stopMillis)
    if (ended._tag === "None") {
      current.kill("SIGKILL")
      yield* exited(current)
    }
    // After the server: a reaper that saw us die in between would still do its work.
    reaper?.kill("SIGKILL")
    child = undefined
  })

  const awaitReady = (current: ChildProcess, problem: () => Error | undefined) =>
    Effect.gen(function* () {
      while (!(yield* spec.ready(current.pid ?? -1))) {
        const error = problem()
        if (error !== undefined) return yield* new ServerFailed({ server: spec.name, problem: error.message })
        if (current.exitCode !== null || current.signalCode !== null) {
          const log = yield* lastLines(spec.logFile)
          return yield* new ServerFailed({ server: spec.name, problem: `ended at once: ${log}` })
        }
        yield* Effect.sleep("10 millis")
      }
    }).pipe(
      Effect.timeoutOrElse({
        duration: startMillis,
        orElse: () =>
          Effect.flatMap(lastLines(spec.logFile), (log) =>
            Effect.fail(
              new ServerFailed({ server: spec.name, problem: `not ready within ${startMillis / 1000} s: ${log}` }),
            ),
          ),
      }),
    )

  const start = Effect.gen(function* () {
    const log = openSync(spec.logFile, "a")
    let problem: Error | undefined
    const current = spawn(spec.command, spec.args, {
      detached: true,
      cwd: "/",
      stdio: ["ignore", log, log],
      ...spec.account,
    })
    closeSync(log)
    current.on("error", (error) => (problem = error))
    child = current
    if (current.pid !== undefined) {
      const own = startReaper(current.pid, spec.stopSignal)
      reaper = own
      // A server that ended by itself: its pid may come to belong to another process.
      current.once("exit", () => own.kill("SIGKILL"))
    }
    yield* awaitReady(current, () => problem)
  })

  yield* Effect.addFinalizer(() => stop(spec.stopSignal))
  yield* start
  return { pid: () => child?.pid ?? -1, stop, start }
})
