/**
 * Sets appends of a shard aside: stored elsewhere in the broker, and only then acknowledged in the intake. So they no
 * longer count as under way there, where the number that may be is bounded, and need no redelivery while they wait.
 */
import { Effect, FiberSet, Random, Semaphore, type Scope } from "effect"
import type { Broker, Delivery } from "../broker/Broker.ts"
import { Metrics } from "../observe/Metrics.ts"
import * as limits from "./limits.ts"
import { park } from "./outcome.ts"
import type { Offered } from "./Waiting.ts"

export interface Parking {
  /** Takes the works that are offered; returns when it has them, which may wait for the broker to confirm earlier ones. */
  readonly park: (offered: Offered) => Effect.Effect<void>
  /** Tells the broker that what is being parked is still held. */
  readonly keepAlive: () => void
  /** Lets what is under way finish, for `drainMillis` at most; then hands that back. */
  readonly close: Effect.Effect<void>
  /** Ends only by a defect. */
  readonly run: Effect.Effect<void>
}

export const make = Effect.fnUntraced(function* (
  shard: string,
): Effect.fn.Return<Parking, never, Broker | Metrics | Scope.Scope> {
  const metrics = yield* Metrics
  const services = yield* Effect.context<Broker | Metrics>()
  const fibers = yield* FiberSet.make<void, never>()
  const slots = Semaphore.makeUnsafe(limits.parkingAtOnce)
  const underWay = new Set<ReadonlyArray<Delivery>>()

  const store = Effect.fnUntraced(function* (deliveries: ReadonlyArray<Delivery>) {
    const rest = yield* park("appends", shard, deliveries)
    for (const delivery of rest) delivery.retry(limits.handBackDelay(delivery.deliveryCount, yield* Random.next))
    if (rest.length > 0) yield* metrics.count("handed_back_total", { shard }, rest.length)
  })

  return {
    park: (offered) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          yield* restore(slots.take(1))
          const deliveries = offered.works.slice(offered.next).map(({ delivery }) => delivery)
          offered.next = offered.works.length
          underWay.add(deliveries)
          const finished = Effect.sync(() => underWay.delete(deliveries))
          yield* FiberSet.run(
            fibers,
            store(deliveries).pipe(
              Effect.andThen(finished),
              Effect.ensuring(slots.release(1)),
              Effect.provideContext(services),
            ),
          )
        }),
      ),
    keepAlive: () => {
      for (const deliveries of underWay) for (const delivery of deliveries) delivery.working()
    },
    close: Effect.gen(function* () {
      yield* Effect.timeoutOption(FiberSet.awaitEmpty(fibers), limits.drainMillis)
      for (const deliveries of underWay) for (const delivery of deliveries) delivery.retry(0)
    }),
    run: FiberSet.join(fibers),
  }
})
