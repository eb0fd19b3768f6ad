/**
 * Looks from time to time whether what a lane committed last is still in the database. It always is, unless the database
 * was replaced by an older state of itself: restored from a backup, or a standby that lacked the last transactions. The
 * broker still holds what was finished lately, so that the operator can have it stored again; but has to be told.
 */
import { Effect } from "effect"
import type { Place } from "../contract/LogEntry.ts"
import type { ObjectId } from "../contract/ObjectId.ts"
import { ShardPool } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"

export interface LossCheck {
  /** Remembers an entry that was committed. */
  readonly committed: (id: ObjectId, placed: Place) => void
  /** Looks for ever. */
  readonly run: Effect.Effect<never>
}

export const make = Effect.fnUntraced(function* (shard: string): Effect.fn.Return<LossCheck, never, ShardPool> {
  const pool = yield* ShardPool
  let last: { readonly id: ObjectId; readonly placed: Place } | undefined

  const look = Effect.gen(function* () {
    if (last === undefined) return
    const { id, placed } = last
    const { position } = placed
    const [found] = yield* pool.readPage(shard, {
      id,
      order: "position",
      after: { position: position - 1 },
      from: undefined,
      to: undefined,
      scanTo: position,
      upTo: position,
      maxEntries: 1,
      maxBytes: 1,
    })
    if (found !== undefined && found.timestamp === placed.timestamp && found.seq === placed.seq) return
    // Once for each loss.
    last = undefined
    yield* Effect.logError(
      `shard ${shard}: an entry that was committed is gone: the database is older than it was. If it was restored from a backup, run: objectlog replay`,
    )
  }).pipe(
    // A shard that does not answer is asked again the next time.
    Effect.catchTags({ ShardUnavailable: () => Effect.void, ReadRejected: () => Effect.void }),
  )

  return {
    committed: (id, placed) => void (last = { id, placed }),
    run: Effect.forever(Effect.delay(look, limits.lossCheckMillis)),
  }
})
