/**
 * What goes on beside the deliveries: the streams are kept small, and the reserve whole. It is also how a worker with
 * nothing to do sees that the broker stores no more, or that a stream was changed.
 */
import { type JetStreamManager, JetStreamApiError } from "@nats-io/jetstream"
import { Effect, Latch, Random } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import { ensureRules, ensureWritable, margin, noMargin, purgeDone } from "./maintain.ts"
import { attempt, type BrokerMisconfigured, type Topics } from "./provision.ts"
import { isSilence } from "../nats/jetStreamErrors.ts"
import type { Reserve } from "./Reserve.ts"
import type { Room } from "./Room.ts"
import type { Storing } from "./Storing.ts"
import { type PurgedRole, purgedParts, type StreamRole } from "./streamRules.ts"
import type { Volume } from "./Volume.ts"

/** From one time to the next: where little comes, where much does, and while the store is full. */
const everyMillis = 10_000
const oftenMillis = 250
const fullMillis = 1_000

/** From one look to the next whether a stream can be written. */
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
  readonly nameOf: (role: StreamRole) => string
  readonly volumes: Record<PurgedRole, Volume>
  readonly reserve: Reserve
  readonly room: Room
  readonly storing: Storing
  /** Of the server, such as `2.9.10`; `undefined` without a connection. */
  readonly version: () => string | undefined
}

export const runUpkeep = Effect.fnUntraced(function* (options: UpkeepOptions): Effect.fn.Return<never> {
  const { jsm, nameOf, reserve, room, storing, topics, version, volumes } = options
  const account = attempt("account", () => jsm.getAccountInfo())
  // Most servers have no limit for an account, or don't tell it to us. Then it is learnt when the store is full.
  const told = yield* Effect.match(account, { onSuccess: ({ limits }) => limits.max_storage, onFailure: () => -1 })
  let maxStorage = told
  const learning = storing.full.await.pipe(
    Effect.andThen(account),
    Effect.tap(({ storage }) => Effect.sync(() => (maxStorage = told > 0 ? told : storage))),
    Effect.ignore,
    Effect.andThen(Effect.sleep(everyMillis)),
    Effect.forever,
  )
  /** While it is full there is no margin. */
  const kept = (role: PurgedRole) => (Latch.isOpen(storing.full) ? noMargin : margin(role, maxStorage))
  /** Jittered, so that workers that start together don't all ask at once. */
  const pause = Effect.flatMap(Random.next, (random) => Effect.sleep(everyMillis * (0.8 + 0.4 * random)))

  /** While somebody waits for room what is done is kept for that. */
  const whenCalm = (self: Effect.Effect<void>) => Effect.suspend(() => (storing.isCalm() ? self : Effect.void))
  /** The next time: after a pause, or as soon as there is more to do. */
  const next = Effect.andThen(storing.full.await, Effect.sleep(fullMillis)).pipe(Effect.raceFirst(pause))

  const watched = <A>(
    what: string,
    role: StreamRole,
    look: Effect.Effect<A, BrokerUnavailable | BrokerMisconfigured>,
  ) =>
    Effect.suspend(() => {
      const name = nameOf(role)
      return storing
        .heard(`${what} ${name}`, look, (error) => error._tag === "BrokerUnavailable" && isDead(error))
        .pipe(
          Effect.andThen(storing.changed(name, undefined)),
          Effect.catchTag("BrokerMisconfigured", ({ problem }) => storing.changed(name, problem)),
          Effect.catch((error) => Effect.logDebug(error.message)),
        )
    })
  const purging = purgedParts.map((role) =>
    whenCalm(
      watched(
        "a purge of",
        role,
        Effect.suspend(() => purgeDone(jsm, topics, role, nameOf(role), kept(role), volumes[role].settle())),
      ),
    ).pipe(
      Effect.andThen(Effect.sleep(oftenMillis)),
      Effect.andThen(Effect.raceFirst(next, volumes[role].due.await)),
      Effect.forever,
    ),
  )
  const looking = (["response", "dead"] as const).map((role) =>
    watched("a look at", role, ensureRules(jsm, topics, role)).pipe(Effect.andThen(pause), Effect.forever),
  )
  const testing = purgedParts.map((role) =>
    Effect.suspend(() => {
      if (!tellsUnwritable(version())) return Effect.void
      const name = nameOf(role)
      return Effect.ignore(storing.heard(`a write to ${name}`, ensureWritable(jsm, name), isDead))
    }).pipe(Effect.delay(writableMillis), Effect.forever),
  )
  /** A reserve that could never be made is not allowed to us, or not possible here. */
  let wasFilled = false
  const filling = storing
    .heard("test messages", reserve.fill, (error) => wasFilled && isSilence(error))
    .pipe(
      Effect.flatMap((isWhole) => {
        wasFilled = true
        // What is done has given way by then.
        return isWhole
          ? storing.hasRoom("withReserve")
          : Effect.andThen(storing.refused("no room for the reserve", false), whenCalm(room.forReserve))
      }),
      Effect.catch((error) => Effect.andThen(Effect.logDebug(error.message), storing.hasRoom("without"))),
      Effect.andThen(next),
      Effect.forever,
    )
  return yield* Effect.all([...purging, ...looking, ...testing, filling, learning], {
    concurrency: "unbounded",
    discard: true,
  }).pipe(Effect.andThen(Effect.never))
})
