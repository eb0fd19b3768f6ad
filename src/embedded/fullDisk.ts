/**
 * A nats-server that met a full disk does not recover when the disk has room again: 2.9 hangs as a whole, 2.15 confirms
 * nothing on the streams that were written to then. What it had confirmed is on the disk, and a start finds it. So it is
 * started again, once there is room.
 */
import { Clock, Effect } from "effect"
import { open } from "node:fs/promises"

/** What has to be free: less would be full again within seconds. */
export const roomBytes = 64 * 1024 ** 2

/** Between two restarts, doubled with each in a row: one that does not help is no reason for the next. */
const pauseMillis = { first: 60_000, longest: 600_000 }

/** How often is looked, and at how much of the log then. */
const everyMillis = 2_000
const logBytes = 1024 ** 2

const mebibytes = (bytes: number): string => `${Math.floor(bytes / 1024 ** 2)} MiB`

export type Verdict = "nothing" | "wait for room" | "restart"

/** Decides when to start it again. */
export class Restarts {
  #last = -Infinity
  #pause = pauseMillis.first

  /** `silent`: it confirms nothing. `free`: bytes on its disk, where that is known. */
  judge(silent: boolean, free: number | undefined, now: number): Verdict {
    if (!silent) return "nothing"
    if (free !== undefined && free < roomBytes) return "wait for room"
    if (now - this.#last < this.#pause) return "nothing"
    // After the longest pause it is another fault.
    this.#pause =
      now - this.#last > pauseMillis.longest ? pauseMillis.first : Math.min(2 * this.#pause, pauseMillis.longest)
    this.#last = now
    return "restart"
  }
}

/** What a server writes to its log where the system has no room for it. */
const noRoom = "no space left on device"

/**
 * Whether the log of a server, whose lines begin with its process id, says that it met a full disk. Who has nothing to store
 * would not find out. Reads what is new each time.
 */
export const fullDiskIn = (logFile: string, pid: () => number): Effect.Effect<boolean> => {
  let readUpTo = 0
  let metBy = -1
  return Effect.promise(async () => {
    const file = await open(logFile).catch(() => undefined)
    if (file === undefined) return false
    try {
      const { size } = await file.stat()
      const from = Math.max(readUpTo, size - logBytes)
      const { buffer, bytesRead } = await file.read(Buffer.alloc(Math.max(0, size - from)), 0, undefined, from)
      readUpTo = from + bytesRead
      for (const line of buffer.toString("latin1", 0, bytesRead).split("\n")) {
        if (line.includes(noRoom)) metBy = Number(/^\[(\d+)\]/.exec(line)?.[1] ?? -1)
      }
      return metBy === pid()
    } finally {
      await file.close()
    }
  })
}

export interface FullDiskOptions {
  /** Whether the server confirms nothing although it is connected, or would not if it were asked. */
  readonly isSilent: Effect.Effect<boolean>
  readonly free: Effect.Effect<number | undefined>
  readonly restart: (because: string) => Effect.Effect<void>
}

/** Looks after the server until it is interrupted. */
export const recoverFromFullDisk = ({ free, isSilent, restart }: FullDiskOptions): Effect.Effect<never> => {
  const restarts = new Restarts()
  let before: Verdict = "nothing"
  return Effect.gen(function* () {
    const bytes = yield* free
    const verdict = restarts.judge(yield* isSilent, bytes, yield* Clock.currentTimeMillis)
    if (verdict === "restart") yield* restart("it confirms nothing, as after a full disk")
    if (verdict === "wait for room" && before !== verdict) {
      yield* Effect.logWarning(
        `nats-server: confirms nothing, and its disk has ${mebibytes(bytes ?? 0)} free; it is started again when there are ${mebibytes(roomBytes)}`,
      )
    }
    before = verdict
  }).pipe(Effect.delay(everyMillis), Effect.forever)
}

/** Waits until a server has room to start, saying what is missing. */
export const awaitRoom = Effect.fnUntraced(function* (name: string, free: Effect.Effect<number | undefined>) {
  for (let said = false; ; said = true) {
    const bytes = yield* free
    if (bytes === undefined || bytes >= roomBytes) return
    if (!said) {
      yield* Effect.logWarning(
        `${name}: its disk has ${bytes} bytes free; it is started when there are ${roomBytes}, so free ${roomBytes - bytes} more`,
      )
    }
    yield* Effect.sleep(everyMillis)
  }
})
