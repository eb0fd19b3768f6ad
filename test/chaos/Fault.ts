/** What a fault is, what it strikes, and what the files of faults share. */
import { Effect, Schedule } from "effect"
import type { Randomness } from "./Randomness.ts"
import type { TestBroker } from "./TestBroker.ts"
import type { TestShards } from "./TestShards.ts"
import type { Worker } from "./Workers.ts"

/** What faults strike. */
export interface Targets {
  readonly broker: TestBroker["Service"]
  readonly shards: TestShards["Service"]
  readonly workers: ReadonlyArray<Worker>
  /** The broker's `ack_wait` during the run. */
  readonly ackWaitMillis: number
  /** Waits until the run has seen all that the broker holds, for a fault after which some of it may be gone. */
  readonly allSeen: Effect.Effect<void>
  readonly violation: (problem: string) => void
}

/** One fault of the plan. */
export interface Fault {
  readonly kind: string
  /** Shown in the log. */
  readonly target: string
  /** Two faults with a lock in common don't strike at the same time. */
  readonly locks: ReadonlyArray<string>
  /** Shards whose appends may be delayed. */
  readonly shards: ReadonlyArray<number>
  readonly millis: number
  readonly begin: Effect.Effect<void>
  readonly end: Effect.Effect<void>
}

/** Makes a fault of one kind; the target and the rest are left to chance. `longMillis` is for those that are to last. */
export type MakeFault = (targets: Targets, random: Randomness, longMillis: number) => Omit<Fault, "kind">

export const allShards = (targets: Targets): ReadonlyArray<number> => targets.shards.shards.map((_, index) => index)

/** A server may be busy, or just coming up. */
export const retried = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A> =>
  self.pipe(Effect.retry({ schedule: Schedule.spaced("200 millis"), times: 50 }), Effect.orDie)
