/**
 * When appends are due: at fixed times from the start on, whatever became of those before. Latency counts from the due
 * time, so that a stall shows in every append that it delayed, and not only in the one that met it.
 */
import { Clock, Effect } from "effect"

export class Schedule {
  readonly #perMilli: number
  readonly durationMillis: number
  /** Appends that are due in the whole run. */
  readonly total: number

  constructor(ratePerSecond: number, durationMillis = Number.POSITIVE_INFINITY) {
    this.#perMilli = ratePerSecond / 1_000
    this.durationMillis = durationMillis
    this.total = Math.max(1, Math.floor(durationMillis * this.#perMilli))
  }

  /** How many are due when so much time has passed; the first one is due at once. */
  dueBy(elapsedMillis: number): number {
    return Math.min(Math.floor(elapsedMillis * this.#perMilli) + 1, this.total)
  }

  /** When the one with this index (from 0) is due, from the start on. */
  dueAtMillis(index: number): number {
    return index / this.#perMilli
  }
}

/** Appends sent without a pause, so that answers are taken in between. */
const sliceMax = 1_000
/** What timers can do. */
const pauseMillis = 1

/** Milliseconds of the clock that only goes forward. */
export const monotonic = Effect.map(
  Clock.Clock,
  (clock) => (): number => Number(clock.monotonicTimeNanosUnsafe()) / 1e6,
)

export interface Paced {
  /** Sends one that was due at this time; `false` when nothing can be sent at the moment. */
  readonly send: (due: number) => boolean
  readonly offered: (count: number) => void
}

/** Sends what is due until all is sent or the time is over. What could not be sent in time is sent as soon as it can. */
export const pace = Effect.fnUntraced(function* (schedule: Schedule, { offered, send }: Paced) {
  const now = yield* monotonic
  const began = now()
  for (let sent = 0; ;) {
    const elapsed = now() - began
    const due = schedule.dueBy(elapsed)
    offered(due)
    const until = Math.min(due, sent + sliceMax)
    while (sent < until && send(began + schedule.dueAtMillis(sent))) sent += 1
    if (sent >= schedule.total || elapsed >= schedule.durationMillis) return
    const next = sent < due ? pauseMillis : Math.max(pauseMillis, began + schedule.dueAtMillis(sent) - now())
    yield* Effect.sleep(Math.min(next, Math.max(pauseMillis, schedule.durationMillis - elapsed)))
  }
})
