/**
 * Makes room in a store that is full, for what has to be stored: events, dead letters, parked requests.
 *
 * What is given up, in this order: what is done, which costs only the look back; the reserve; the oldest events, as much as
 * the reserve at a time, where the stream holds nothing but events. After each step the message is sent again at once, so
 * that it is ahead of publishers that wait for room. What it completes can then be given up too, which is more than an event
 * takes, but for small requests; those live on the old events.
 *
 * Other ways that were tried on paper. To close the intake meanwhile, by a limit: nats-server 2.9 enforces a limit that is
 * set by deleting what exceeds it, also under discard new, and an update of a stream in a cluster lost requests that were
 * handed back (nats-server issue 5526). To limit the intake when it is made: what it may take is set aside, and a server
 * with less room later does not find the stream again.
 */
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect, Schedule, Semaphore } from "effect"
import type { BrokerUnavailable } from "./Broker.ts"
import { noMargin, purgeDone } from "./maintain.ts"
import { attempt, findStream, streamSubjects, type Topics } from "./provision.ts"
import { isStoreFull } from "./refusals.ts"
import type { Reserve } from "./Reserve.ts"
import type { Storing } from "./Storing.ts"
import { isOursAlone, type PurgedPart, purgedParts } from "./streamRules.ts"

/** Bytes of old events that are dropped at a time. */
const eventsAtOnce = 8 * 1024 ** 2

/** Between two attempts while room is being made. */
const againMillis = 5

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
  readonly nameOf: (part: PurgedPart) => string
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
    Effect.forEach(purgedParts, (part) => orNone(purgeDone(jsm, topics, part, nameOf(part), noMargin, 0)), {
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

  /** Whether something was given up, or has been since `before`. */
  const make = (before: number) =>
    Effect.gen(function* () {
      if (made > before) return true
      for (const [what, step] of [
        ["finished requests", dropDone],
        ["pieces of the reserve", reserve.giveUp],
        ["old events", dropEvents],
      ] as const) {
        const dropped = yield* orNone(step)
        if (dropped === 0) continue
        yield* Effect.logDebug(`broker: gave up ${dropped} ${what}`)
        made++
        return true
      }
      return false
    }).pipe(oneAtATime.withPermits(1))

  /** What is left of the room is better in the reserve than with publishers: who needs some next finds it there. */
  const refill = Effect.ignore(reserve.fill)

  const storedAfter = (publish: Effect.Effect<void, BrokerUnavailable>) =>
    Effect.fnUntraced(function* (refusal: BrokerUnavailable): Effect.fn.Return<void, BrokerUnavailable> {
      yield* storing.refused(refusal.cause instanceof Error ? refusal.cause.message : String(refusal.cause), true)
      const before = made
      // Also while room is being made: publishers are many, and whoever is there first has it.
      const insist = publish.pipe(
        Effect.retry({ while: isStoreFull, schedule: Schedule.spaced(againMillis) }),
        Effect.as("stored"),
      )
      const making = Effect.map(make(before), (isMade) => (isMade ? "made" : "nothing left"))
      const outcome = yield* Effect.raceFirst(insist, making)
      if (outcome === "stored") return yield* refill
      if (outcome === "nothing left") {
        yield* Effect.sleep(lastTryMillis)
        if (made === before) return yield* publish
      }
      yield* Effect.catchIf(Effect.tap(publish, refill), isStoreFull, storedAfter(publish))
    })

  const forReserve = Effect.asVoid(oneAtATime.withPermits(1)(orNone(dropEvents)))

  return { forReserve, stored: (publish) => Effect.catchIf(publish, isStoreFull, storedAfter(publish)) }
}
