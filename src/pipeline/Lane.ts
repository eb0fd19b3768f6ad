/**
 * The lane of one shard: a bounded queue of appends, and the loop that stores them.
 *
 * A lane takes whatever waits when its last transaction has ended, so one message alone is not delayed and a flood makes
 * large batches. Commit, then event, then ack: transactions of a lane run one after the other, while the events of the
 * last few batches are being confirmed by the broker.
 *
 * States. *up*: batches commit. *down*: the last attempt failed for a transient reason and is being repeated, without
 * end; the lane keeps what it holds, and what arrives beyond its bounds is handed back to the broker at once with a
 * delay. *closing*: the worker stops; what waits is handed back, what is under way is finished within a bound.
 */
import { Clock, Duration, Effect, FiberSet, Latch, Random, Semaphore, type Scope } from "effect"
import type { Broker, Delivery } from "../broker/Broker.ts"
import type { NewEntry, Placed } from "../domain/LogEntry.ts"
import { encodeAppended, type AppendRequest } from "../domain/Protocol.ts"
import { retryReason } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { ShardPool } from "../shard/ShardPool.ts"
import * as limits from "./limits.ts"
import { outcomeId, publishForever, refuse, secondsSince } from "./outcome.ts"

/** One append on its way through a lane. */
export interface Work {
  readonly delivery: Delivery
  readonly request: AppendRequest
  readonly entry: NewEntry
}

export interface Lane {
  readonly shard: string
  /** Takes appends; returns when each is in the lane or handed back, after `laneFullWaitMillis` at the latest. */
  readonly offer: (works: ReadonlyArray<Work>) => Effect.Effect<void>
  /** Stores what is offered; ends only by interruption. */
  readonly run: Effect.Effect<never>
  /** Hands back what waits and lets what is under way finish, for `drainMillis` at most; then hands that back too. */
  readonly close: Effect.Effect<void>
}

/** A part of a batch that is in the database. */
interface Committed {
  readonly works: ReadonlyArray<Work>
  readonly placed: ReadonlyArray<Placed>
}

/** Makes the lane of shard number `index`. */
export const make = Effect.fnUntraced(function* (
  index: number,
  shard: string,
): Effect.fn.Return<Lane, never, Broker | ShardPool | Metrics | Scope.Scope> {
  const pool = yield* ShardPool
  const metrics = yield* Metrics
  const services = yield* Effect.context<Broker | Metrics>()
  const announcing = yield* FiberSet.make<void, never>()

  let waiting: Array<Work> = []
  let waitingCharacters = 0
  let down = false
  let closing = false
  /** Batches that were taken out of `waiting` and whose deliveries are not settled. */
  const underWay = new Set<ReadonlyArray<Work>>()
  const arrived = Latch.makeUnsafe(false)
  const space = Latch.makeUnsafe(true)
  const idle = Latch.makeUnsafe(true)
  const publishing = Semaphore.makeUnsafe(limits.lanePublishing)

  const batchEntries = metrics.observer("append_batch_entries", { shard })
  const transactionSeconds = metrics.observer("append_transaction_seconds", { shard })
  const delaySeconds = metrics.observer("append_delay_seconds", {})
  const held = () => Array.from(underWay).reduce((sum, batch) => sum + batch.length, waiting.length)
  yield* metrics.gauge("lane_entries", { shard }, held)
  yield* metrics.gauge("lane_up", { shard }, () => (down ? 0 : 1))

  const isFull = () => waiting.length >= limits.laneEntriesMax || waitingCharacters >= limits.laneCharactersMax

  /** Moves works from `from` on into the lane until it is full; gives the index of the first that did not fit. */
  const enqueue = (works: ReadonlyArray<Work>, from: number): number => {
    let next = from
    while (next < works.length && !isFull() && !closing) {
      const work = works[next++]!
      waiting.push(work)
      waitingCharacters += work.entry.log.length
    }
    if (next > from) {
      idle.closeUnsafe()
      arrived.openUnsafe()
    }
    if (isFull()) space.closeUnsafe()
    return next
  }

  const handBack = Effect.fnUntraced(function* (works: ReadonlyArray<Work>) {
    for (const { delivery } of works) {
      delivery.retry(closing ? 0 : limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    }
    yield* metrics.count("handed_back_total", { shard }, works.length)
  })

  const offer = Effect.fnUntraced(function* (works: ReadonlyArray<Work>) {
    let next = enqueue(works, 0)
    while (next < works.length && !down && !closing) {
      const found = yield* Effect.timeoutOption(space.await, limits.laneFullWaitMillis)
      if (found._tag === "None") break
      next = enqueue(works, next)
    }
    if (next < works.length) yield* handBack(works.slice(next))
  })

  /** The next batch: as much as is there, up to the bounds of a transaction. */
  const take = (): ReadonlyArray<Work> => {
    let characters = 0
    let count = 0
    while (count < waiting.length && count < limits.batchEntriesMax && characters < limits.batchCharactersMax) {
      characters += waiting[count++]!.entry.log.length
    }
    const batch = count === waiting.length ? waiting : waiting.slice(0, count)
    waiting = count === waiting.length ? [] : waiting.slice(count)
    waitingCharacters -= characters
    underWay.add(batch)
    if (waiting.length === 0) arrived.closeUnsafe()
    if (!isFull()) space.openUnsafe()
    return batch
  }

  const settled = (batch: ReadonlyArray<Work>) => {
    underWay.delete(batch)
    if (underWay.size === 0 && waiting.length === 0) idle.openUnsafe()
  }

  const append = (works: ReadonlyArray<Work>) =>
    Effect.map(
      Effect.timed(
        pool.append(
          index,
          works.map((work) => work.entry),
        ),
      ),
      ([took, placed]) => {
        transactionSeconds(Duration.toSeconds(took))
        batchEntries(works.length)
        return placed
      },
    )

  /** Commits a batch, trying for ever if need be; a rejected one is halved until the culprit stands alone. */
  const store = (works: ReadonlyArray<Work>): Effect.Effect<ReadonlyArray<Committed>, never, Broker | Metrics> =>
    append(works).pipe(
      Effect.tapErrorTag("ShardUnavailable", (error) =>
        Effect.gen(function* () {
          yield* metrics.count("retries_total", { part: "append", reason: retryReason(error.reason) })
          if (!down) yield* Effect.logWarning(`${error.message}; retrying until it is back`)
          down = true
        }),
      ),
      Effect.retry({ schedule: limits.retryForever, while: (error) => error._tag === "ShardUnavailable" }),
      Effect.tap(() => (down ? Effect.logInfo(`shard ${shard}: back`) : Effect.void)),
      Effect.ensuring(Effect.sync(() => (down = false))),
      Effect.map((placed): ReadonlyArray<Committed> => [{ works, placed }]),
      Effect.catchTag("BatchRejected", (error) => {
        if (works.length > 1) {
          const middle = works.length >> 1
          return Effect.zipWith(store(works.slice(0, middle)), store(works.slice(middle)), (a, b) => [...a, ...b])
        }
        const { delivery, request } = works[0]!
        return Effect.as(
          refuse("append", delivery, {
            code: "entry_rejected",
            message: `log: the database refused it with SQLSTATE ${error.sqlState}`,
            id: request.id,
            requestId: request.requestId,
            replyTo: request.replyTo,
          }),
          [],
        )
      }),
      // Only ShardUnavailable is left, which is retried without end.
      Effect.catch(() => Effect.never),
    )

  /** Publishes the events of what was committed and acknowledges it. */
  const announce = Effect.fnUntraced(function* ({ works, placed }: Committed) {
    yield* publishForever(
      works.map(({ delivery, request }, i) => ({
        payload: encodeAppended(request.id, placed[i]!, request.requestId),
        messageId: outcomeId(delivery),
        replyTo: request.replyTo,
      })),
    )
    for (const { delivery } of works) delivery.ack()
    const now = yield* Clock.currentTimeMillis
    for (const { delivery } of works) delaySeconds(secondsSince(delivery, now))
    yield* metrics.count("append_batches_total", { shard })
    yield* metrics.count("appended_entries_total", { shard }, works.length)
    yield* metrics.count("messages_total", { subject: "append", outcome: "ok" }, works.length)
  })

  const storeNext = Effect.gen(function* () {
    yield* arrived.await
    const batch = take()
    const committed = yield* store(batch)
    yield* publishing.take(1)
    yield* FiberSet.run(
      announcing,
      Effect.forEach(committed, announce, { discard: true }).pipe(
        Effect.andThen(Effect.sync(() => settled(batch))),
        Effect.ensuring(publishing.release(1)),
        Effect.provideContext(services),
      ),
    )
  }).pipe(Effect.provideContext(services))

  /** A transaction repeated through an outage may hold its batch for hours: the broker must not give it to another worker. */
  const keepAlive = Effect.sync(() => {
    for (const { delivery } of waiting) delivery.working()
    for (const batch of underWay) for (const { delivery } of batch) delivery.working()
  }).pipe(Effect.delay(limits.keepAliveMillis))

  const close = Effect.gen(function* () {
    closing = true
    space.openUnsafe()
    const rest = waiting
    waiting = []
    waitingCharacters = 0
    arrived.closeUnsafe()
    if (underWay.size === 0) idle.openUnsafe()
    yield* handBack(rest)
    yield* Effect.timeoutOption(idle.await, limits.drainMillis)
    yield* handBack([...underWay].flat())
  })

  return {
    shard,
    offer,
    run: Effect.raceAllFirst([Effect.forever(storeNext), Effect.forever(keepAlive), FiberSet.join(announcing)]).pipe(
      Effect.andThen(Effect.never),
    ),
    close,
  }
})
