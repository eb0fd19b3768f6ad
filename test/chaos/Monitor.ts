/** Watches how long appends wait, of which shard, and when that is normal again after a fault. */
import { Effect, Schedule, type Scope } from "effect"
import type { Ledger } from "./Ledger.ts"

/** Appends that wait for less are served as usual. */
const normalMillis = 500
const sampleMillis = 50

export interface Monitor {
  /**
   * Waits until what was confirmed before now is answered, on these shards, and what waits is as young as usual; gives the
   * milliseconds that it took.
   */
  readonly recovered: (shards: ReadonlyArray<number>) => Effect.Effect<number>
  /** The longest time without any event although an append waited. */
  readonly longestStallMillis: () => number
}

export const startMonitor = Effect.fnUntraced(function* (
  ledger: Ledger,
): Effect.fn.Return<Monitor, never, Scope.Scope> {
  let longest = 0
  const sample = Effect.sync(() => {
    const now = Date.now()
    for (let shard = 0; shard < ledger.delays.length; shard++) {
      const since = ledger.waitingSince(shard)
      if (since !== undefined) longest = Math.max(longest, now - Math.max(since, ledger.lastAnswerAt))
    }
  })
  yield* sample.pipe(Effect.andThen(Effect.sleep(sampleMillis)), Effect.forever, Effect.forkScoped)
  return {
    longestStallMillis: () => longest,
    recovered: (shards) =>
      Effect.suspend(() => {
        const start = Date.now()
        return Effect.sync(() => {
          const now = Date.now()
          return shards.every((shard) => {
            const since = ledger.waitingSince(shard)
            return since === undefined || (since > start && now - since < normalMillis)
          })
        }).pipe(
          Effect.repeat({
            until: (isNormal) => isNormal,
            schedule: Schedule.spaced(sampleMillis),
          }),
          Effect.map(() => Date.now() - start),
        )
      }),
  }
})
