/**
 * How long one shard may hold up the others: a stock of time that is used up by waiting for it while others have nothing to do,
 * and grows again slowly. So a shard that is short of room for once is waited for, and one that can't keep up is not: whenever it
 * makes some room, that is used up at once, and the others would stand still nearly all the time.
 */
import * as limits from "./limits.ts"

export class Patience {
  #left = limits.patienceMillis
  #at = 0

  /** What is left at a time, in milliseconds. */
  left(now: number): number {
    this.#left = Math.min(limits.patienceMillis, this.#left + (now - this.#at) * limits.patienceRegained)
    this.#at = now
    return this.#left
  }

  use(millis: number): void {
    this.#left -= millis
  }
}
