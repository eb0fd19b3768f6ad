/**
 * When appends are due: at fixed times from the start on, whatever became of those before. Latency counts from the due
 * time, so that a stall shows in every append that it delayed, and not only in the one that met it.
 */
export class Schedule {
  readonly #perMilli: number
  /** Appends that are due in the whole run. */
  readonly total: number

  constructor(ratePerSecond: number, durationMillis: number | undefined) {
    this.#perMilli = ratePerSecond / 1_000
    this.total =
      durationMillis === undefined ? Number.POSITIVE_INFINITY : Math.max(1, Math.floor(durationMillis * this.#perMilli))
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
