/**
 * Strikes with faults, as a seed decides: one at a time or two, with a rest until all is normal again or without one.
 *
 * The kinds come in shuffled rounds, so that each strikes about as often as the others. The seed decides kinds, targets,
 * durations and pauses; how the processes react is theirs, so a seed repeats the plan and not the run.
 */
import { Effect, FiberSet, Semaphore, type Scope } from "effect"
import type { Fault } from "./Fault.ts"
import type { Kind } from "./faults.ts"
import type { Monitor } from "./Monitor.ts"
import type { Randomness } from "./Randomness.ts"

/** A fault that has struck, and what came of it. */
export interface Struck {
  readonly kind: string
  readonly target: string
  readonly shards: ReadonlyArray<number>
  readonly beganAt: number
  endedAt: number | undefined
  recoveredAt: number | undefined
}

/** A fault that lasts longer is not waited for: others strike beside it. */
const longMillis = 10_000

/** The longest that a step waits for normal service before the next fault strikes all the same. */
const restMillis = 3_000

export interface Storm {
  /** All that has struck so far. */
  readonly struck: ReadonlyArray<Struck>
  /** Runs a fault from its beginning to its end; the return to normal is noted when it comes. */
  readonly strike: (fault: Fault) => Effect.Effect<void>
  /** Waits until all is normal after every fault. */
  readonly recovered: Effect.Effect<void>
}

export const makeStorm = Effect.fnUntraced(function* (
  monitor: Monitor,
  log: (line: string) => void,
): Effect.fn.Return<Storm, never, Scope.Scope> {
  const recovering = yield* FiberSet.make<void, never>()
  const struck: Array<Struck> = []
  const locks = new Map<string, Semaphore.Semaphore>()
  const lockOf = (name: string) => {
    const lock = locks.get(name) ?? Semaphore.makeUnsafe(1)
    locks.set(name, lock)
    return lock
  }
  const strike = Effect.fnUntraced(function* (fault: Fault) {
    // In one order for all, so that two faults can't wait for each other.
    const held = fault.locks.toSorted().map(lockOf)
    yield* Effect.forEach(held, (lock) => lock.take(1), { discard: true })
    const { kind, shards, target } = fault
    const own: Struck = { kind, target, shards, beganAt: Date.now(), endedAt: undefined, recoveredAt: undefined }
    struck.push(own)
    log(`${kind}: ${target}, for ${fault.millis} ms`)
    yield* fault.begin
    yield* Effect.sleep(fault.millis)
    yield* fault.end
    own.endedAt = Date.now()
    log(`${kind}: ${target}, over`)
    yield* Effect.forEach(held, (lock) => lock.release(1), { discard: true })
    yield* FiberSet.run(
      recovering,
      Effect.map(monitor.recovered(shards), (millis) => {
        own.recoveredAt = Date.now()
        log(`${kind}: ${target}, normal after ${millis} ms`)
      }),
    )
  })
  return { struck, strike, recovered: FiberSet.awaitEmpty(recovering) }
})

/** An endless sequence of kinds: shuffled rounds of all of them. */
const rounds = function* (kinds: ReadonlyArray<Kind>, random: Randomness): Generator<Kind, never> {
  for (;;) yield* random.shuffled(kinds)
}

export interface StormOptions {
  readonly kinds: ReadonlyArray<Kind>
  readonly millis: number
  readonly make: (kind: Kind) => Fault
  /** Planned apart, as it lasts: the long stop of a shard, at these moments from the start. */
  readonly longAt: ReadonlyArray<number>
}

/** Strikes for so long; returns when the last fault is over. */
export const rage = Effect.fnUntraced(function* (
  storm: Storm,
  monitor: Monitor,
  random: Randomness,
  options: StormOptions,
): Effect.fn.Return<void, never, Scope.Scope> {
  const next = rounds(options.kinds, random)
  const beside = yield* FiberSet.make<void, never>()
  const end = Date.now() + options.millis
  const steps = Effect.gen(function* () {
    while (Date.now() < end) {
      // All choices of a step before anything waits, so that their order is the seed's alone.
      const faults = [options.make(next.next().value)]
      const pair = random.chance(0.6)
      const apartMillis = random.between(0, 2_000)
      const rests = random.chance(0.7)
      const pauseMillis = random.between(100, 500)
      if (pair) faults.push(options.make(next.next().value))
      const lasting = faults.filter((fault) => fault.millis > longMillis)
      const brief = faults.filter((fault) => fault.millis <= longMillis)
      yield* Effect.forEach(lasting, (fault) => FiberSet.run(beside, storm.strike(fault)), { discard: true })
      yield* Effect.forEach(brief, (fault, index) => Effect.delay(storm.strike(fault), index * apartMillis), {
        concurrency: "unbounded",
        discard: true,
      })
      const shards = [...new Set(brief.flatMap((fault) => fault.shards))]
      if (rests) yield* Effect.timeoutOption(monitor.recovered(shards), restMillis)
      yield* Effect.sleep(pauseMillis)
    }
  })
  const longs = options.longAt.map((at) => {
    const fault = options.make("shard stopped for long")
    return Effect.delay(storm.strike(fault), at)
  })
  yield* Effect.all([steps, ...longs], { concurrency: "unbounded", discard: true })
  yield* FiberSet.awaitEmpty(beside)
}, Effect.scoped)
