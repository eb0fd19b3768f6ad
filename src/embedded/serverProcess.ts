/**
 * Server processes that can't outlive us.
 *
 * They run in sessions of their own, so that the terminal's Ctrl-C reaches only the parent, which stops them in order.
 * Should the parent be killed outright, a reaper ends them: a shell that waits on a pipe whose other end dies with us.
 */
import { Effect, Schedule, Schema } from "effect"
import { type ChildProcess, spawn } from "node:child_process"
import { closeSync, openSync } from "node:fs"
import { readFile } from "node:fs/promises"

/** A server could not be started, or does not stay up. */
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

/** A server that serves. */
export interface ServerProcess {
  readonly pid: number
  /** Waits for its end, and tells what ended it: a signal, or its exit code. */
  readonly ended: Effect.Effect<string>
  /** Sends a signal and waits for the end; a second, forceful one follows after three seconds. */
  readonly stop: (signal: NodeJS.Signals) => Effect.Effect<void>
}

/**
 * One that lives and is not ready is slow: after a crash it may have much to recover, and would have to begin anew if it
 * were ended. So this long is waited, and said from time to time.
 */
const readyWithinMillis = 600_000
const slowNoticeMillis = 15_000
const pollMillis = 10

/** How long a server may take to stop before it is killed. */
const stopMillis = 3_000

const exited = (child: ChildProcess): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    const done = () => resume(Effect.void)
    child.once("exit", done)
    return Effect.sync(() => child.off("exit", done))
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

/** The running process; a throw where the system refuses to make one at once. */
const spawnNow = (spec: ServerSpec): ChildProcess => {
  const log = openSync(spec.logFile, "a")
  try {
    return spawn(spec.command, spec.args, { detached: true, cwd: "/", stdio: ["ignore", log, log], ...spec.account })
  } finally {
    closeSync(log)
  }
}

const spawned = (spec: ServerSpec): Effect.Effect<ServerProcess, ServerFailed> =>
  Effect.callback((resume) => {
    const failed = (error: unknown) =>
      resume(Effect.fail(new ServerFailed({ server: spec.name, problem: String((error as Error).message) })))
    let child: ChildProcess
    try {
      child = spawnNow(spec)
    } catch (error) {
      return failed(error)
    }
    child.on("error", failed)
    const { pid } = child
    if (pid === undefined) return
    const reaper = startReaper(pid, spec.stopSignal)
    // Not before the end: a reaper that sees us die still does its work. Not later either: the pid may come to belong to
    // another process.
    child.once("exit", () => reaper.kill("SIGKILL"))
    const stop = Effect.fnUntraced(function* (signal: NodeJS.Signals) {
      child.kill(signal)
      const ended = yield* Effect.timeoutOption(exited(child), stopMillis)
      if (ended._tag === "Some") return
      child.kill("SIGKILL")
      yield* exited(child)
    })
    const ended = Effect.map(exited(child), () => child.signalCode ?? `exit code ${child.exitCode}`)
    resume(Effect.succeed({ pid, ended, stop }))
  })

/** Starts a server and waits until it is ready; what does not become so, or is no longer waited for, is stopped. */
export const launch = (spec: ServerSpec): Effect.Effect<ServerProcess, ServerFailed> =>
  Effect.gen(function* () {
    const server = yield* spawned(spec)
    const failed = (problem: string) =>
      Effect.flatMap(lastLines(spec.logFile), (log) =>
        Effect.fail(new ServerFailed({ server: spec.name, problem: `${problem}: ${log}` })),
      )
    const slow = Effect.flatMap(lastLines(spec.logFile), (log) =>
      Effect.logWarning(`${spec.name}: lives, but is not ready yet; waiting. Its log says: ${log}`),
    )
    yield* Effect.suspend(() => spec.ready(server.pid)).pipe(
      Effect.repeat({ until: (ready) => ready, schedule: Schedule.spaced(pollMillis) }),
      Effect.raceFirst(Effect.flatMap(server.ended, (how) => failed(`ended at once (${how})`))),
      Effect.raceFirst(Effect.forever(Effect.delay(slow, slowNoticeMillis))),
      Effect.timeoutOrElse({
        duration: readyWithinMillis,
        orElse: () => failed(`not ready within ${readyWithinMillis / 60_000} minutes`),
      }),
      Effect.interruptible,
      Effect.onError(() => server.stop(spec.stopSignal)),
    )
    return server
  }).pipe(Effect.uninterruptible)
