/**
 * Which lanes of a worker take appends, and which of them are in the way of others: what a lane that has no room may do depends on
 * the others.
 */
import { Latch } from "effect"
import * as limits from "./limits.ts"

/** What the lanes know of one of them. */
interface Pace {
  /** It holds nothing. */
  isIdle: boolean
  /** How long its transactions take lately, in milliseconds; when the last one ended, and when the present one began. */
  millis: number
  endedAt: number
  beganAt: number
}

/** A transaction counts for so much of what is known of those before it. */
const weight = 0.25

export class Flow {
  readonly #stalled = new Set<string>()
  readonly #paces = new Map<string, Pace>()
  /** Open while at least one lane takes appends. */
  readonly some = Latch.makeUnsafe(true)

  constructor(shards: ReadonlyArray<string>) {
    for (const shard of shards)
      this.#paces.set(shard, { isIdle: true, millis: 0, endedAt: -Infinity, beganAt: Infinity })
  }

  isStalled(shard: string): boolean {
    return this.#stalled.has(shard)
  }

  isSome(): boolean {
    return this.#stalled.size < this.#paces.size
  }

  stall(shard: string): void {
    this.#stalled.add(shard)
    if (!this.isSome()) this.some.closeUnsafe()
  }

  flow(shard: string): void {
    if (this.#stalled.delete(shard)) this.some.openUnsafe()
  }

  /** The lane holds something, or nothing any more. */
  idle(shard: string, isIdle: boolean): void {
    this.#paces.get(shard)!.isIdle = isIdle
  }

  began(shard: string, now: number): void {
    this.#paces.get(shard)!.beganAt = now
  }

  /** A transaction of the lane took so long. */
  took(shard: string, millis: number, now: number): void {
    const pace = this.#paces.get(shard)!
    pace.millis = pace.endedAt === -Infinity ? millis : pace.millis + weight * (millis - pace.millis)
    pace.endedAt = now
    pace.beganAt = Infinity
  }

  /**
   * While it has no room, does a lane keep others from work that could have done it? Those that are in use, have nothing to do, and are
   * much faster. Where all are slow, as workers are that wait for each other's locks, none is in the way.
   */
  isInTheWay(shard: string, now: number): boolean {
    const pace = this.#paces.get(shard)!
    // One that is under way may already be longer than those before it.
    const millis = Math.max(pace.millis, now - pace.beganAt)
    if (millis < limits.slowMillis) return false
    for (const [name, other] of this.#paces) {
      const isInUse = now - other.endedAt < limits.idleMillis
      if (name !== shard && other.isIdle && isInUse && millis >= limits.slowerTimes * other.millis) return true
    }
    return false
  }
}
