/**
 * What other parents hold or have left in a data folder.
 *
 * A claim keeps two parents from serving the same data at once: without it, the second would take the first one's servers
 * for leftovers and end them. A claim names its process by pid and start time, as pids are used again.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import { execFile } from "node:child_process"
import { randomUUID } from "node:crypto"
import { readFile } from "node:fs/promises"
import { ownFolder } from "./dataFolder.ts"

/** Another process that is alive serves this data. */
class FolderInUse extends Schema.TaggedError<FolderInUse>()("FolderInUse", {
  folder: Schema.String,
  pid: Schema.Int,
}) {
  override get message(): string {
    return `${this.folder} is in use by the process with pid ${this.pid}; stop that one, or use another DATA_DIR`
  }
}

/** A process as the system shows it. */
export interface ProcessSeen {
  /** Differs for two processes that had the same pid one after the other. */
  readonly started: string
  readonly commandLine: string
}

/** How long a leftover server may take to stop before it is killed, and a killed one to vanish. */
const stopMillis = 3_000
const pollMillis = 10

const fromProc = async (pid: number): Promise<ProcessSeen | undefined> => {
  const [stat, commandLine] = await Promise.all([
    readFile(`/proc/${pid}/stat`, "utf8"),
    readFile(`/proc/${pid}/cmdline`, "utf8"),
  ])
  // The program's name, in parentheses, may itself hold spaces and parentheses: the fields count from the last one.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  // A zombie has ended; where process 1 doesn't collect its children, it stays for good.
  if (fields[0] === "Z" || fields[0] === "X") return undefined
  return { started: fields[19] ?? "", commandLine: commandLine.replaceAll("\0", " ") }
}

const fromPs = (pid: number): Promise<ProcessSeen | undefined> =>
  new Promise((resolve) => {
    const fields = ["-o", "state=", "-o", "lstart=", "-o", "command="]
    execFile("ps", ["-ww", "-p", String(pid), ...fields], { env: { ...process.env, LC_ALL: "C" } }, (error, stdout) => {
      const match = /^\s*(\S+)\s+((?:\S+\s+){4}\S+)\s+(.*)/.exec(stdout)
      if (error !== null || match === null || match[1]!.startsWith("Z")) return resolve(undefined)
      resolve({ started: match[2]!, commandLine: match[3]! })
    })
  })

/** The process with this pid, or `undefined` when there is none. */
export const inspect = (pid: number): Effect.Effect<ProcessSeen | undefined> =>
  Effect.promise(() =>
    process.platform === "linux" ? fromProc(pid).catch(() => undefined) : fromPs(pid).catch(() => undefined),
  )

const holderOf = (text: string) => {
  const [pid, ...started] = text.trim().split(" ")
  return { pid: Number(pid), started: started.join(" ") }
}

/**
 * Claims `folder` for one kind of server until the scope closes, and makes it where it is missing; fails when a living
 * process holds it, or somebody else has made it for us. The claim of a process that is gone, or whose pid now belongs to
 * another one, is void.
 */
export const claimFolder = Effect.fnUntraced(function* (folder: string, kind: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* ownFolder(folder)
  const file = path.join(folder, `${kind}.owner`)
  const own = `${file}.${randomUUID()}`
  const self = yield* inspect(process.pid)
  yield* fs.writeFileString(own, `${process.pid} ${self?.started ?? ""}\n`)
  // A link appears as a whole or not at all, and never replaces the one of somebody else.
  const take = Effect.acquireRelease(fs.link(own, file), () => Effect.ignore(fs.remove(file)))
  yield* Effect.gen(function* () {
    for (let attempt = 1; ; attempt++) {
      const taken = yield* Effect.result(take)
      if (taken._tag === "Success") return
      if (taken.failure.reason._tag !== "AlreadyExists" || attempt === 10) return yield* taken.failure
      const text = yield* Effect.catch(fs.readFileString(file), () => Effect.succeed(""))
      const holder = holderOf(text)
      const seen = holder.pid > 0 ? yield* inspect(holder.pid) : undefined
      if (seen !== undefined && seen.started === holder.started) {
        return yield* new FolderInUse({ folder, pid: holder.pid })
      }
      // Moved aside before it is removed: whoever clears the same void claim later must not remove the new one.
      const aside = `${file}.${randomUUID()}`
      yield* Effect.ignore(fs.rename(file, aside))
      const moved = yield* Effect.catch(fs.readFileString(aside), () => Effect.succeed(text))
      if (moved !== text) yield* Effect.ignore(fs.link(aside, file))
      yield* Effect.ignore(fs.remove(aside))
    }
  }).pipe(Effect.ensuring(Effect.ignore(fs.remove(own))))
})

const signalTo = (pid: number, signal: NodeJS.Signals): void => {
  try {
    process.kill(pid, signal)
  } catch {
    // Gone in the meantime, or of another user: the wait that follows tells.
  }
}

const gone = Effect.fnUntraced(function* (pid: number, started: string) {
  for (let waited = 0; waited < stopMillis; waited += pollMillis) {
    if ((yield* inspect(pid))?.started !== started) return true
    yield* Effect.sleep(pollMillis)
  }
  return false
})

/**
 * Ends the server that an earlier parent left, if `pid` still is that server: its command line has to hold all `marks`.
 * Tells what is at that pid afterwards.
 */
export const reapLeftover = Effect.fnUntraced(function* (
  pid: number,
  marks: ReadonlyArray<string>,
  signal: NodeJS.Signals,
): Effect.fn.Return<ProcessSeen | undefined> {
  const seen = yield* inspect(pid)
  if (seen === undefined || !marks.every((mark) => seen.commandLine.includes(mark))) return seen
  signalTo(pid, signal)
  if (yield* gone(pid, seen.started)) return undefined
  signalTo(pid, "SIGKILL")
  return (yield* gone(pid, seen.started)) ? undefined : seen
})
