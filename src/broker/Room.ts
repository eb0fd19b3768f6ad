/**
 * Makes room in a store that is full, for what has to be stored: events, dead letters, parked requests.
 *
 * What is given up, in this order: what is done, which costs only the look back; the reserve; the oldest events, where their
 * stream holds nothing else. What has to be stored is sent all the while, to be ahead of publishers that wait for room. What
 * it completes can be given up next: more than an event takes, but for small requests; those live on the old events.
 * docs/decisions/0014-a-full-store-gives-way.md has what else was thought of.
 */
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect, Result, Schedule, Semaphore } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import { noMargin, purgeDone } from "./maintain.ts"
import { attempt, findStream, streamSubjects, type Topics } from "./provision.ts"
import { isStoreFull } from "../nats/jetStreamErrors.ts"
import type { Reserve } from "./Reserve.ts"
import type { Storing } from "./Storing.ts"
import { isOursAlone, type PurgedRole, purgedParts } from "./streamRules.ts"

/** Bytes of old events that are dropped at a time. */
const eventsAtOnce = 8 * 1024 ** 2

/** Between two attempts while room is being made. Who listens to events hears them each time. */
const againMillis = 10

/** For the reserve, before who waits is told that it is stored. */
const refillMillis = 1_000

/** After the last step: somebody else may have made room, or not have taken what they made. */
const lastTryMillis = 100

export interface Room {
  /** Has the oldest events give way to the reserve, and with it to publishers. */
  readonly forReserve: Effect.Effect<void>
  /** Has something stored, making room as long as there is something to give up; fails with the refusal after that. */
  readonly stored: (publish: Effect.Effect<void, BrokerUnavailable>) => Effect.Effect<void, BrokerUnavailable>
}

export interface RoomOptions {
  readonly jsm: JetStreamManager
  readonly topics: Topics
  /** The present name of the stream of a part. */
  readonly nameOf: (role: PurgedRole) => string
  readonly reserve: Reserve
  readonly storing: Storing
}

export const makeRoom = ({ jsm, nameOf, reserve, storing, topics }: RoomOptions): Room => {
  const oneAtATime = Semaphore.makeUnsafe(1)
  /** How often room was made. */
  let made = 0

  /** Without what can't be asked for now. */
  const orNone = <E extends Error>(dropped: Effect.Effect<number, E>) =>
    Effect.catch(dropped, (error) => Effect.as(Effect.logDebug(error.message), 0))

  const dropDone = Effect.map(
    Effect.forEach(purgedParts, (role) => orNone(purgeDone(jsm, topics, role, nameOf(role), noMargin, 0)), {
      concurrency: "unbounded",
    }),
    (purged) => purged.reduce((sum, messages) => sum + messages, 0),
  )

  const dropEvents = Effect.gen(function* () {
    const found = yield* findStream(jsm, topics.responseTopic)
    if (found === undefined || !isOursAlone(found.config, streamSubjects(topics).response)) return 0
    const { bytes, first_seq, last_seq, messages } = found.state
    if (messages < 2) return 0
    // Not the last one: a stream that was emptied may lose its count with the next crash of the server.
    const seq = Math.min(last_seq, first_seq + Math.ceil(eventsAtOnce / (bytes / messages)))
    return (yield* attempt("purge", () => jsm.streams.purge(found.config.name, { seq }))).purged
  })

  /** Gives something up, unless that was done since `before`. */
  const make = (before: number) =>
    Effect.gen(function* () {
      if (made > before) return "made"
      for (const [what, step] of [
        ["finished requests", dropDone],
        ["pieces of the reserve", reserve.giveUp],
        ["old events", dropEvents],
      ] as const) {
        const dropped = yield* orNone(step)
        if (dropped === 0) continue
        yield* Effect.logDebug(`broker: gave up ${dropped} ${what}`)
        made++
        return "made"
      }
      return "nothing left"
    }).pipe(oneAtATime.withPermits(1))

  /** What is left of the room is better in the reserve than with publishers: who needs some next finds it there. */
  const refill = reserve.fill.pipe(Effect.timeoutOption(refillMillis), Effect.ignore)

  const stored = Effect.fnUntraced(function* (
    publish: Effect.Effect<void, BrokerUnavailable>,
  ): Effect.fn.Return<void, BrokerUnavailable> {
    const insisting = publish.pipe(
      Effect.retry({ while: isStoreFull, schedule: Schedule.spaced(againMillis) }),
      Effect.as("stored"),
    )
    for (let wasRefused = false; ; wasRefused = true) {
      const attempted = yield* Effect.result(publish)
      if (Result.isSuccess(attempted)) {
        if (wasRefused) yield* refill
        return
      }
      const refusal = attempted.failure
      if (!isStoreFull(refusal)) return yield* refusal
      yield* storing.refused(refusal.cause instanceof Error ? refusal.cause.message : String(refusal.cause), true)
      const before = made
      // Also while room is being made: publishers are many, and whoever is there first has it.
      const outcome = yield* Effect.raceFirst(insisting, make(before))
      if (outcome === "stored") return yield* refill
      if (outcome === "made") continue
      yield* Effect.sleep(lastTryMillis)
      if (made === before) return yield* publish
    }
  })

  return { stored, forReserve: Effect.asVoid(oneAtATime.withPermits(1)(orNone(dropEvents))) }
}
