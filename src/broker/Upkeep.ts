/**
 * What goes on beside the deliveries: the streams are kept small, and the reserve whole. It is also how a worker with
 * nothing to do sees that the broker stores no more, or that a stream was changed.
 */
import { type JetStreamManager, JetStreamApiError } from "@nats-io/jetstream"
import { Effect, Latch, Random } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import { ensureRules, ensureWritable, margin, noMargin, purgeDone } from "./maintain.ts"
import { attempt, type BrokerMisconfigured, type Topics } from "./provision.ts"
import { isSilence } from "./refusals.ts"
import type { Reserve } from "./Reserve.ts"
import type { Room } from "./Room.ts"
import type { Storing } from "./Storing.ts"
import { type PurgedPart, purgedParts, type StreamPart } from "./streamRules.ts"
import type { Volume } from "./Volume.ts"

/** From one time to the next where little comes; where much does, or the store is full; and for the reserve while it is full. */
const everyMillis = 10_000
const oftenMillis = 250
const refillMillis = 1_000

const writableMillis = 60_000

/** Whether the server answers for a stream that it can't write. */
const tellsUnwritable = (version: string | undefined): boolean => version !== undefined && !/^2\.\d\./.test(version)

/** No answer, or one that a stream can't be purged, which is as good as none. */
const isDead = (error: BrokerUnavailable): boolean =>
  isSilence(error) || (error.operation === "purge" && error.cause instanceof JetStreamApiError)

export interface UpkeepOptions {
  readonly jsm: JetStreamManager
  readonly topics: Topics
  /** The present name of the stream of a part. */
  readonly nameOf: (part: StreamPart) => string
  readonly volumes: Record<PurgedPart, Volume>
  readonly reserve: Reserve
  readonly room: Room
  readonly storing: Storing
  /** Of the server, such as `2.9.10`; `undefined` without a connection. */
  readonly version: () => string | undefined
}

export const runUpkeep = Effect.fnUntraced(function* (options: UpkeepOptions): Effect.fn.Return<never> {
  const { jsm, nameOf, reserve, room, storing, topics, version, volumes } = options
  const account = attempt("account", () => jsm.getAccountInfo())
  // Most servers have no limit for an account, or don't tell it to us.
  let maxStorage = yield* Effect.match(account, {
    onSuccess: ({ limits }) => limits.max_storage,
    onFailure: () => -1,
  })
  /** Where the server does not tell what it may store, it is learnt when it is full. */
  const learn = Effect.flatMap(account, ({ storage }) =>
    Effect.sync(() => (maxStorage = maxStorage > 0 ? Math.min(maxStorage, storage) : storage)),
  ).pipe(Effect.ignore)
  /** While it is full there is no margin. */
  const kept = (part: PurgedPart) => (Latch.isOpen(storing.full) ? noMargin : margin(part, maxStorage))
  /** Jittered, so that workers that start together don't all ask at once. */
  const pause = Effect.flatMap(Random.next, (random) => Effect.sleep(everyMillis * (0.8 + 0.4 * random)))

  const watched = <A>(part: StreamPart, look: Effect.Effect<A, BrokerUnavailable | BrokerMisconfigured>) =>
    Effect.suspend(() => {
      const name = nameOf(part)
      return storing
        .heard(`purge of ${name}`, look, (error) => error._tag === "BrokerUnavailable" && isDead(error))
        .pipe(
          Effect.andThen(storing.changed(name, undefined)),
          Effect.catchTag("BrokerMisconfigured", ({ problem }) => storing.changed(name, problem)),
          Effect.catch((error) => Effect.logDebug(error.message)),
        )
    })
  const purging = purgedParts.map((part) =>
    watched(
      part,
      Effect.suspend(() =>
        // What is done is all that can give way for sure, and is kept for who waits for room.
        storing.isCalm()
          ? purgeDone(jsm, topics, part, nameOf(part), kept(part), volumes[part].settle())
          : Effect.succeed(0),
      ),
    ).pipe(
      Effect.andThen(Effect.sleep(oftenMillis)),
      Effect.andThen(Effect.raceAllFirst([pause, volumes[part].due.await, storing.full.await])),
      Effect.forever,
    ),
  )
  const looking = (["response", "dead"] as const).map((part) =>
    watched(
      part,
      Effect.suspend(() => ensureRules(jsm, topics, part)),
    ).pipe(Effect.andThen(pause), Effect.forever),
  )
  const testing = purgedParts.map((part) =>
    Effect.suspend(() => {
      if (!tellsUnwritable(version())) return Effect.void
      const name = nameOf(part)
      return Effect.ignore(storing.heard(`write to ${name}`, ensureWritable(jsm, name), isDead))
    }).pipe(Effect.delay(writableMillis), Effect.forever),
  )
  const tooFull = storing.refused("no room for the reserve", false).pipe(
    Effect.andThen(learn),
    // What is done has given way by then, or is kept for who waits.
    Effect.andThen(Effect.suspend(() => (storing.isCalm() ? room.forReserve : Effect.void))),
  )
  /** A reserve that could never be made is not allowed to us, or not possible here. */
  let wasFilled = false
  const filling = storing
    .heard("test messages", reserve.fill, (error) => wasFilled && isSilence(error))
    .pipe(
      Effect.flatMap((isWhole) => {
        wasFilled = true
        return isWhole ? storing.hasRoom("withReserve") : tooFull
      }),
      Effect.catch((error) => Effect.andThen(Effect.logDebug(error.message), storing.hasRoom("without"))),
      Effect.andThen(Effect.raceFirst(pause, Effect.andThen(storing.full.await, Effect.sleep(refillMillis)))),
      Effect.forever,
    )
  return yield* Effect.all([...purging, ...looking, ...testing, filling], {
    concurrency: "unbounded",
    discard: true,
  }).pipe(Effect.andThen(Effect.never))
})
