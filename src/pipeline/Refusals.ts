/**
 * Refused requests on their way to the dead letters, beside all else: whoever refuses one hands it over and goes on.
 *
 * A stream of dead letters that is full, or takes nothing, must not stop what is in order. So what is handed over is bounded,
 * for appends and reads apart, and reported to the broker as in progress. Many that come at once find room in a moment: for
 * them the intake waits, but not longer than `fullWaitMillis` until there is room for many again. What comes after that
 * is handed back with a delay.
 */
import { Clock, Context, Effect, Fiber, Latch, Queue, Random, type Scope, Stream } from "effect"
import type { Broker, Delivery } from "../broker/Broker.ts"
import type { Refusal } from "../contract/Request.ts"
import { type Subject, subjects } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { watched } from "../observe/Parts.ts"
import * as limits from "./limits.ts"
import { dismiss } from "./outcome.ts"

type Refused = readonly [delivery: Delivery, refusal: Refusal]

export class Refusals extends Context.Service<
  Refusals,
  {
    /** Takes refused requests over, or hands them back. Interruption while it waits hands back what it did not take. */
    readonly take: (type: Subject, refused: ReadonlyArray<Refused>) => Effect.Effect<void>
    /** Ends only by a defect. */
    readonly run: Effect.Effect<never>
  }
>()("objectlog/pipeline/Refusals") {}

/** Refuses one message: it is kept as a dead letter, answered and acknowledged, in its own time. */
export const refuse = (type: Subject, delivery: Delivery, refusal: Refusal): Effect.Effect<void, never, Refusals> =>
  Refusals.use((refusals) => refusals.take(type, [[delivery, refusal]]))

/** Those of one kind of requests. */
const makeQueue = Effect.fnUntraced(function* (type: Subject) {
  const metrics = yield* Metrics
  const services = yield* Effect.context<Broker | Metrics>()
  const queue = yield* Queue.unbounded<Refused>()
  /** What each holds, in bytes: it is detached meanwhile. */
  const held = new Map<Delivery, number>()
  const room = Latch.makeUnsafe(true)
  let bytes = 0
  let moves = 0
  /** Since when there was not room for many. */
  let fullSince: number | undefined
  yield* watched({ name: `refusals of ${type} requests`, subject: type, held: () => held.size, moves: () => moves })
  // What is not finished at the end is handed back.
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const delivery of held.keys()) delivery.retry(0)
    }),
  )

  const isFull = () => held.size >= limits.refusalsWaiting || bytes >= limits.refusalsBytesMax

  const finished = (delivery: Delivery) => {
    bytes -= held.get(delivery) ?? 0
    held.delete(delivery)
    moves++
    if (held.size <= limits.refusalsWaiting / 2 && bytes <= limits.refusalsBytesMax / 2) fullSince = undefined
    if (!isFull()) room.openUnsafe()
  }

  const handBack = Effect.fnUntraced(function* (refused: ReadonlyArray<Refused>) {
    for (const [delivery] of refused) delivery.retry(limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    moves += refused.length
    yield* metrics.count("retries_total", { part: "dead letter", reason: "full" }, refused.length)
  })

  const take = (refused: ReadonlyArray<Refused>): Effect.Effect<void> => {
    let next = 0
    return Effect.gen(function* () {
      while (next < refused.length) {
        if (!isFull()) {
          const [delivery] = refused[next]!
          held.set(delivery, delivery.heldBytes)
          bytes += delivery.heldBytes
          Queue.offerUnsafe(queue, refused[next++]!)
          continue
        }
        room.closeUnsafe()
        const now = yield* Clock.currentTimeMillis
        fullSince ??= now
        const left = fullSince + limits.fullWaitMillis - now
        if (left <= 0) return yield* handBack(refused.slice(next))
        yield* Effect.timeoutOption(room.await, left)
      }
    }).pipe(Effect.onInterrupt(() => Effect.sync(() => refused.slice(next).forEach(([delivery]) => delivery.retry(0)))))
  }

  const keepAlive = Effect.sync(() => {
    for (const delivery of held.keys()) {
      delivery.working()
      delivery.detach()
    }
  }).pipe(Effect.delay(limits.keepAliveMillis), Effect.forever)
  const work = Stream.fromQueue(queue).pipe(
    Stream.mapEffect(
      ([delivery, refusal]) =>
        Effect.andThen(
          dismiss(type, delivery, refusal),
          Effect.sync(() => finished(delivery)),
        ),
      { concurrency: limits.refusalsAtOnce, unordered: true },
    ),
    Stream.runDrain,
  )
  const run = Effect.raceFirst(keepAlive, work).pipe(Effect.andThen(Effect.never), Effect.provideContext(services))
  return { take, run }
})

/** What is held when the scope is closed is handed back. */
export const make: Effect.Effect<Refusals["Service"], never, Broker | Metrics | Scope.Scope> = Effect.gen(function* () {
  const [append, query] = [yield* makeQueue(subjects[0]), yield* makeQueue(subjects[1])]
  const queues = { append, query }
  const running = yield* Effect.all([append.run, query.run], { concurrency: "unbounded" }).pipe(Effect.forkScoped)
  return Refusals.of({
    take: (type, refused) => queues[type].take(refused),
    run: Effect.andThen(Fiber.join(running), Effect.never),
  })
})
