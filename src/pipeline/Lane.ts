/**
 * The lane of one shard: two bounded queues, of fresh appends and of those that were parked, and the loop that stores
 * them.
 *
 * A lane takes whatever waits when its last transaction has ended, so one message alone is not delayed and a flood makes
 * large batches. Commit, then event, then ack: transactions of a lane run one after the other, each while the events of the
 * one before are being confirmed by the broker.
 *
 * States. *up*: batches commit. *stalled*: it made no room for `fullWaitMillis`, or was in the way of lanes that had nothing to
 * do until their patience was used up; what arrives beyond its bounds is parked at once, until it has caught up. *down*: the last attempt failed for a transient reason and is being repeated,
 * without end; stalled too, and the lane keeps what it holds. *closing*: the worker stops; what waits is handed back, what
 * is under way is finished within a bound.
 */
import { Clock, Duration, Effect, FiberSet, Latch, Random, Semaphore, type Scope } from "effect"
import type { Broker, Delivery } from "../broker/Broker.ts"
import { retryReason } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { watched } from "../observe/Parts.ts"
import { Tracing } from "../trace/Tracing.ts"
import { type AppendOutcome, type BatchRejected, ShardPool, type ShardUnavailable } from "../shard/ShardPool.ts"
import type { Flow } from "./Flow.ts"
import * as limits from "./limits.ts"
import * as LossCheck from "./LossCheck.ts"
import * as Parking from "./Parking.ts"
import { Patience } from "./Patience.ts"
import type { Shares } from "./Shares.ts"
import { type Offered, type Source, Waiting, type Work } from "./Waiting.ts"
import { Appended, publishForever, secondsSince } from "./outcome.ts"
import { refuse, type Refusals } from "./Refusals.ts"

export interface Lane {
  readonly shard: string
  /** Takes in what there is room for; whether that was all. */
  readonly enqueue: (source: Source, offered: Offered) => boolean
  /**
   * Brings the rest in, or elsewhere. From the intake: a lane that makes no room has it parked, unless all lanes are like
   * that; then this waits. What was parked waits for room, and is handed back if the shard is lost. Interruption
   * leaves the rest, from `offered.next` on, to the caller.
   */
  readonly admit: (source: Source, offered: Offered) => Effect.Effect<void>
  /** Wait until the shard is not down, and until it is. */
  readonly up: Effect.Effect<void>
  readonly down: Effect.Effect<void>
  /** Stores what is offered; ends only by interruption. */
  readonly run: Effect.Effect<never>
  /** Hands back what waits and lets what is under way finish, for `drainMillis` at most; then hands that back too. */
  readonly close: Effect.Effect<void>
}

/** What the lanes of a worker share. */
export interface Shared {
  readonly flow: Flow
  /** What they hold, and what is being parked, in bytes. */
  readonly memory: Shares
  readonly parking: Shares
}

/** Appends of one transaction, and what became of each. */
interface Decided {
  readonly works: ReadonlyArray<Work>
  readonly outcomes: ReadonlyArray<AppendOutcome>
}

/** The SQLSTATE of a rejected append, which is always alone in its batch. */
const rejectedState = ([first]: ReadonlyArray<AppendOutcome>): string | undefined =>
  first?._tag === "Rejected" ? first.sqlState : undefined

/** Makes the lane of the shard of that name. */
export const make = Effect.fnUntraced(function* (
  shard: string,
  { flow, memory, parking: parkingMemory }: Shared,
): Effect.fn.Return<Lane, never, Broker | ShardPool | Metrics | Refusals | Scope.Scope> {
  const pool = yield* ShardPool
  const metrics = yield* Metrics
  const tracing = yield* Tracing
  const clock = yield* Clock.Clock
  const services = yield* Effect.context<Broker | Metrics | Refusals>()
  const announcing = yield* FiberSet.make<void, never>()

  const parking = yield* Parking.make(shard, parkingMemory)
  const lossCheck = yield* LossCheck.make(shard)
  const patience = new Patience()
  // Apart, so that what was parked leaves room for what is fresh.
  const accounts: Record<Source, string> = { intake: shard, parked: `${shard}, parked` }
  const queue = (source: Source) =>
    new Waiting(limits.batchEntriesMax, { tryAdd: (bytes) => memory.tryAdd(accounts[source], bytes) })
  const waiting: Record<Source, Waiting> = { intake: queue("intake"), parked: queue("parked") }
  /** Gives back the memory of works that the lane does not hold any more. */
  const forget = (works: ReadonlyArray<Work>) => {
    for (const source of ["intake", "parked"] as const) {
      const bytes = works.reduce((sum, work) => (work.source === source ? sum + work.weight : sum), 0)
      if (bytes > 0) memory.remove(accounts[source], bytes)
    }
  }
  const stopListening = memory.onRelease(() => {
    waiting.intake.space.openUnsafe()
    waiting.parked.space.openUnsafe()
  })
  yield* Effect.addFinalizer(() => Effect.sync(stopListening))
  /** Reasons of the present outage that were logged. */
  const said = new Set<string>()
  let closing = false
  let moves = 0
  /** Batches that were taken out of `waiting` and whose deliveries are not settled. */
  const underWay = new Set<ReadonlyArray<Work>>()
  const arrived = Latch.makeUnsafe(false)
  const idle = Latch.makeUnsafe(true)
  const up = Latch.makeUnsafe(true)
  const down = Latch.makeUnsafe(false)
  /** More than one batch at a time brings nothing: the events of the next would only wait in the connection. */
  const publishing = Semaphore.makeUnsafe(1)

  const batchEntries = metrics.observer("append_batch_entries", { shard })
  const transactionSeconds = metrics.observer("append_transaction_seconds", { shard })
  const delaySeconds = metrics.observer("append_delay_seconds", {})
  const held = () =>
    Array.from(underWay).reduce(
      (sum, batch) => sum + batch.length,
      waiting.intake.works.length + waiting.parked.works.length,
    )
  yield* metrics.gauge("lane_entries", { shard }, held)
  yield* watched({ name: `lane of ${shard}`, subject: "append", held, moves: () => moves })
  yield* metrics.gauge("lane_up", { shard }, () => (Latch.isOpen(down) ? 0 : 1))

  const isEmpty = () => waiting.intake.isEmpty && waiting.parked.isEmpty

  const enqueue = (source: Source, offered: Offered): boolean => {
    const before = offered.next
    const all = waiting[source].enqueue(offered)
    // What a lost shard keeps may be kept for hours.
    if (Latch.isOpen(down)) offered.works.slice(before, offered.next).forEach((work) => work.detach())
    if (!isEmpty()) {
      idle.closeUnsafe()
      flow.idle(shard, false)
      arrived.openUnsafe()
    }
    return all
  }

  const handBack = Effect.fnUntraced(function* (works: ReadonlyArray<Work>) {
    for (const { delivery } of works) {
      delivery.retry(closing ? 0 : limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    }
    yield* metrics.count("handed_back_total", { shard }, works.length)
  })

  const admitFresh = Effect.fnUntraced(function* (offered: Offered) {
    const { space } = waiting.intake
    /** Since when there was no room at all. */
    let fullSince = yield* Clock.currentTimeMillis
    let taken = -1
    while (!enqueue("intake", offered)) {
      if (offered.next > taken) fullSince = yield* Clock.currentTimeMillis
      taken = offered.next
      if (!flow.isStalled(shard)) {
        const before = yield* Clock.currentTimeMillis
        const isInTheWay = flow.isInTheWay(shard, before)
        if (before - fullSince >= limits.fullWaitMillis || (isInTheWay && patience.left(before) <= 0)) {
          flow.stall(shard)
          continue
        }
        yield* Effect.timeoutOption(space.await, limits.placePollMillis)
        if (isInTheWay) patience.use((yield* Clock.currentTimeMillis) - before)
      } else if (flow.isSome()) {
        return yield* parking.park(offered)
      } else {
        // To set it aside would help nobody, and make work for all.
        yield* Effect.raceFirst(space.await, flow.some.await)
      }
    }
  })

  const admitParked = Effect.fnUntraced(function* (offered: Offered) {
    while (!enqueue("parked", offered)) {
      if (Latch.isOpen(down)) {
        const rest = offered.works.slice(offered.next)
        offered.next = offered.works.length
        return yield* handBack(rest)
      }
      yield* Effect.raceFirst(waiting.parked.space.await, down.await)
    }
  })

  /**
   * The next batch: as much as is there, up to the bounds of a transaction. Where both kinds wait, each is sure of a
   * share, so that the backlog of an outage shrinks while fresh appends keep their place.
   */
  const take = (): ReadonlyArray<Work> => {
    let entries = waiting.intake.entriesMax
    let characters = limits.batchCharactersMax
    const some = (source: Source, share: number): ReadonlyArray<Work> => {
      const works = waiting[source].take(entries * share, characters * share)
      entries -= works.length
      for (const { entry } of works) characters -= entry.log.length
      return works
    }
    const batch = waiting.parked.isEmpty
      ? some("intake", 1)
      : [...some("parked", limits.parkedShare), ...some("intake", 1), ...some("parked", 1)]
    underWay.add(batch)
    if (isEmpty()) arrived.closeUnsafe()
    if (waiting.intake.isEmpty) flow.flow(shard)
    return batch
  }

  const settled = (batch: ReadonlyArray<Work>) => {
    moves++
    underWay.delete(batch)
    forget(batch)
    if (underWay.size > 0 || !isEmpty()) return
    idle.openUnsafe()
    flow.idle(shard, true)
  }

  const append = (works: ReadonlyArray<Work>) =>
    Effect.map(
      Effect.timed(
        Effect.suspend(() => {
          flow.began(shard, clock.currentTimeMillisUnsafe())
          return pool.append(
            shard,
            works.map((work) => work.entry),
          )
        }),
      ),
      ([took, outcomes]) => {
        flow.took(shard, Duration.toMillis(took), clock.currentTimeMillisUnsafe())
        transactionSeconds(Duration.toSeconds(took))
        batchEntries(works.length)
        waiting.intake.entriesMax = limits.batchEntries(works.length, Duration.toMillis(took))
        const last = outcomes.at(-1)!
        if (last._tag !== "Rejected") lossCheck.committed(works.at(-1)!.entry.id, last)
        return outcomes
      },
    )

  /** Everything that the lane holds. */
  const all = (): ReadonlyArray<Work> => [
    ...waiting.intake.works,
    ...waiting.parked.works,
    ...Array.from(underWay).flat(),
  ]
  const detachAll = () => {
    for (const work of all()) work.detach()
  }

  /** An attempt has found the shard lost. */
  const lost = Effect.fnUntraced(function* (error: ShardUnavailable) {
    yield* metrics.count("retries_total", { part: "append", reason: retryReason(error.reason) })
    // Every reason of an outage once: the first one may be the least of it.
    if (!said.has(error.reason)) yield* Effect.logWarning(`${error.message}; retrying until it is back`)
    said.add(error.reason)
    up.closeUnsafe()
    if (!Latch.isOpen(down)) detachAll()
    down.openUnsafe()
    flow.stall(shard)
    waiting.intake.entriesMax = limits.batchEntriesMax
  })
  const recovered = Effect.sync(() => {
    said.clear()
    down.closeUnsafe()
    up.openUnsafe()
  })

  /** Has the shard decide about a batch, trying for ever if need be. */
  const untilDecided = (works: ReadonlyArray<Work>): Effect.Effect<ReadonlyArray<AppendOutcome>, BatchRejected> => {
    const attempt = append(works).pipe(
      Effect.ensuring(Effect.sync(() => moves++)),
      Effect.tapErrorTag("ShardUnavailable", lost),
    )
    return tracing.batch("append batch", shard, works, attempt, rejectedState).pipe(
      Effect.retry({ schedule: limits.retryForever, while: (error) => error._tag === "ShardUnavailable" }),
      Effect.tap(() => (Latch.isOpen(down) ? Effect.logInfo(`shard ${shard}: back`) : Effect.void)),
      Effect.ensuring(recovered),
      // The schedule has no end: an error that came through would be a bug.
      Effect.catchTag("ShardUnavailable", Effect.die),
    )
  }

  /** What becomes of each of a batch: one that is rejected is halved until the culprits stand alone. */
  const bisect = (works: ReadonlyArray<Work>): Effect.Effect<ReadonlyArray<Decided>> =>
    untilDecided(works).pipe(
      Effect.map((outcomes): ReadonlyArray<Decided> => [{ works, outcomes }]),
      Effect.catchTag("BatchRejected", () => {
        const middle = works.length >> 1
        return Effect.zipWith(bisect(works.slice(0, middle)), bisect(works.slice(middle)), (a, b) => [...a, ...b])
      }),
    )

  const refuseWork = ({ delivery, entry, replyTo, requestId }: Work, sqlState: string) =>
    refuse("append", delivery, {
      code: "entry_rejected",
      message: `log: the database refused it with SQLSTATE ${sqlState}`,
      id: entry.id,
      requestId,
      replyTo,
    })

  /** Says of each append what became of it, and acknowledges it. */
  const announce = Effect.fnUntraced(function* ({ outcomes, works }: Decided) {
    const events: Array<Appended> = []
    const placed: Array<Delivery> = []
    for (const [i, work] of works.entries()) {
      const outcome = outcomes[i]!
      if (outcome._tag === "Rejected") yield* refuseWork(work, outcome.sqlState)
      else {
        events.push(new Appended(work, outcome))
        placed.push(work.delivery)
      }
    }
    if (placed.length === 0) return
    yield* publishForever(events)
    for (const delivery of placed) delivery.ack()
    const now = yield* Clock.currentTimeMillis
    for (const delivery of placed) delaySeconds(secondsSince(delivery, now))
    yield* metrics.count("append_batches_total", { shard })
    yield* metrics.count("appended_entries_total", { shard }, placed.length)
    yield* metrics.count("messages_total", { subject: "append", outcome: "ok" }, placed.length)
  })

  const storeNext = Effect.gen(function* () {
    yield* arrived.await
    const batch = take()
    const decided = yield* bisect(batch)
    yield* publishing.take(1)
    yield* FiberSet.run(
      announcing,
      Effect.forEach(decided, announce, { discard: true }).pipe(
        Effect.andThen(Effect.sync(() => settled(batch))),
        Effect.ensuring(publishing.release(1)),
        Effect.provideContext(services),
      ),
    )
  }).pipe(Effect.provideContext(services))

  /** A transaction repeated through an outage may hold its batch for hours: the broker must not give it to another worker. */
  const keepAlive = Effect.sync(() => {
    for (const work of all()) {
      work.delivery.working()
      work.detach()
    }
    parking.keepAlive()
  }).pipe(Effect.delay(limits.keepAliveMillis))

  const drain = Effect.gen(function* () {
    closing = true
    const rest = [...waiting.parked.takeAll(), ...waiting.intake.takeAll()]
    arrived.closeUnsafe()
    if (underWay.size === 0) idle.openUnsafe()
    forget(rest)
    yield* handBack(rest)
    yield* Effect.timeoutOption(idle.await, limits.drainMillis)
    yield* handBack([...underWay].flat())
  })

  return {
    shard,
    enqueue,
    admit: (source, offered) => (source === "intake" ? admitFresh(offered) : admitParked(offered)),
    up: up.await,
    down: down.await,
    run: Effect.raceAllFirst([
      Effect.forever(storeNext),
      Effect.forever(keepAlive),
      FiberSet.join(announcing),
      parking.run,
      lossCheck.run,
    ]).pipe(Effect.andThen(Effect.never)),
    close: Effect.all([drain, parking.close], { concurrency: "unbounded", discard: true }),
  }
})
