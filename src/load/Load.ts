/**
 * A run of the load generator: sends appends by the schedule, takes the events, follows the logs, and at the end reads
 * each log completely. It ends with the first violation.
 *
 * What it goes by. An append that the broker acknowledged must be in the log, once; the log is what proves it, read
 * through the service. When it must be there, the broker tells: a worker acknowledges a request after the commit or after
 * parking it, so what is missing below the acknowledgement floor while nothing is parked is lost, and all else is only
 * late, through an outage of any length.
 * Events arrive over core NATS, which drops them while the connection is down; those are taken from their stream.
 */
import { Clock, Deferred, Effect, Exit, Option, type Redacted, type Scope } from "effect"
import { ClientFailed } from "../client/connection.ts"
import { readFloor, replayEvents } from "./BrokerView.ts"
import { connected } from "./connected.ts"
import { readEvent } from "./events.ts"
import { makeFollower } from "./Follower.ts"
import type { Floor, LedgerContext } from "./LedgerContext.ts"
import { ObjectLedger } from "./ObjectLedger.ts"
import { Publisher } from "./Publisher.ts"
import { Reader } from "./Reader.ts"
import { monotonic, pace, Schedule } from "./Schedule.ts"
import { Tally } from "./Tally.ts"
import { payloadMax, type Size, Texts } from "./Texts.ts"
import { LoadUnfinished, Violation } from "./Violation.ts"

export interface LoadOptions {
  readonly servers: Redacted.Redacted
  readonly logsTopic: string
  readonly queryTopic: string
  readonly responseTopic: string
  /** Names the run: lower-case letters and digits. Another run on the same objects must have another one. */
  readonly run: string
  readonly ratePerSecond: number
  readonly objects: number
  readonly firstId: bigint
  readonly size: Size
  readonly durationMillis: number | undefined
  readonly verify: boolean
  readonly timeoutMillis: number
  /** Says something to the person who watches. */
  readonly notice: (text: string) => Effect.Effect<void>
}

/** Appends under way and not settled, beyond which nothing is sent: about 150 MB. */
const pendingMax = 400_000
/** How often what was not acknowledged is looked for, and the broker is asked for its floor. */
const attendMillis = 100
const floorMillis = 1_000
/** Time for an event to arrive once the broker has stored it. */
const eventMillis = 5_000
/** Beyond the time-out, what the longest redelivery takes. */
const graceMillis = 20_000
/** Before the first event tells how the clocks differ, they may by this much. */
const clockMillis = 60_000

type Phase = "starting" | "sending" | "draining" | "reading"

export interface Load {
  readonly tally: Tally
  readonly phase: () => Phase
  /** Objects whose logs were read completely at the end. */
  readonly completelyRead: () => number
  readonly elapsedMillis: () => number
  /** Sends until the duration is over or it is interrupted. */
  readonly send: Effect.Effect<void, Violation | LoadUnfinished>
  /** Waits for what is under way and checks everything. */
  readonly finish: Effect.Effect<void, Violation | LoadUnfinished>
}

export const makeLoad = Effect.fnUntraced(function* (
  options: LoadOptions,
): Effect.fn.Return<Load, ClientFailed, Scope.Scope> {
  const { logsTopic, notice, queryTopic, responseTopic, run, timeoutMillis, verify } = options
  const now = yield* monotonic
  const clock = yield* Clock.Clock
  const scope = yield* Effect.scope
  const startedAt = now()
  const tally = new Tally()
  const { counts } = tally
  const texts = new Texts(run, options.size)
  const failed = Deferred.makeUnsafe<never, Violation>()
  let phase: Phase = "starting"

  const context: LedgerContext = {
    texts,
    verify,
    timeoutMillis,
    counters: counts,
    pending: 0,
    floor: undefined,
    eventFloor: undefined,
    violated: (kind, object, reason) => {
      if (Deferred.isDoneUnsafe(failed)) return
      tally.violated(kind)
      Deferred.doneUnsafe(failed, Exit.fail(new Violation({ kind, object: String(object.id), reason })))
    },
  }
  const objects = Array.from(
    { length: options.objects },
    (_, ordinal) => new ObjectLedger(options.firstId + BigInt(ordinal), ordinal, context),
  )

  let missedEvents = false
  const reconnected = () => {
    missedEvents = true
    publisher.sendAgain(true)
  }
  const { connection, isUp } = yield* connected(options.servers, reconnected, notice)
  const allowed = connection.info?.max_payload ?? Number.POSITIVE_INFINITY
  if (payloadMax(options.size) > allowed) {
    const reason = `--size: texts of ${options.size.max} characters need up to ${payloadMax(options.size)} bytes, the broker takes ${allowed}`
    return yield* new ClientFailed({ reason })
  }
  const publisher = new Publisher({
    connection,
    topic: logsTopic,
    texts,
    now,
    stored: (append, seq, at) => {
      counts.stored += 1
      append.object.stored(append, seq, at)
    },
  })

  // --- Events

  /** At most by how much the broker's clock is ahead of ours: an event comes after its stamp. */
  let clockAheadMillis = -clockMillis
  const reader = new Reader(connection, queryTopic, `${run}.read-`)
  const takeEvent = (data: Uint8Array): void => {
    const event = readEvent(data, `${run}.`)
    if (event === undefined || (event.type !== "append" && reader.receive(event))) return
    const name = texts.parse(event.requestId)
    const object = name === undefined ? undefined : objects[name.object]
    if (name === undefined || object === undefined || event.type === "query") return
    if (event.type === "refused") {
      return context.violated("refused", object, `append ${name.number}: ${event.code}: ${event.reason}`)
    }
    if (event.id !== String(object.id)) {
      return context.violated("contradicted", object, `the event of append ${name.number} names object ${event.id}`)
    }
    const at = now()
    const { position, seq, timestamp } = event
    const due = object.answered(name.number, { position, seq, timestamp }, at)
    if (due === undefined) return
    tally.answered(at - due)
    clockAheadMillis = Math.max(clockAheadMillis, timestamp - clock.currentTimeMillisUnsafe())
  }
  connection.subscribe(responseTopic, {
    callback: (error, message) => {
      if (error === null) takeEvent(message.data)
    },
  })
  yield* Effect.promise(() => connection.flush())

  /** Takes all events since the first append that has none; true if none can have been dropped from their stream. */
  const replay = Effect.suspend(() => {
    const due = objects.reduce((first, { unansweredDue }) => Math.min(first, unansweredDue), now())
    const since = clock.currentTimeMillisUnsafe() - (now() - due) + clockAheadMillis
    return replayEvents(connection, responseTopic, since, takeEvent).pipe(
      Effect.catch((error) => Effect.as(notice(`${error.message}; events that were missed stay so`), false)),
    )
  })

  const checkEvents = Effect.gen(function* () {
    const missing = () => objects.flatMap(({ missingEvent }) => missingEvent ?? [])
    const before = missing()
    if (before.length === 0) return
    const complete = yield* replay
    for (const append of missing().filter((one) => before.includes(one))) {
      append.object.giveUpEvent(append)
      counts.unanswered += 1
      if (!complete) continue
      const reason = `append ${append.number} has no event, in the stream neither, and the workers are done with it`
      context.violated("unanswered", append.object, reason)
    }
  })

  // --- What the broker tells

  const floors: Array<Floor> = []
  const lookAtFloor = Effect.gen(function* () {
    if (!isUp()) return
    const at = now()
    const seq = yield* Effect.option(readFloor(connection, logsTopic))
    if (Option.isNone(seq)) return
    // What was known stays true while appends are parked; and the broker can be asked, so time alone proves nothing.
    context.floor = seq.value === undefined ? (context.floor ?? { seq: 0, at }) : { seq: seq.value, at: now() }
    if (seq.value === undefined) return
    floors.push(context.floor)
    while (floors[0] !== undefined && at - floors[0].at > eventMillis) context.eventFloor = floors.shift()
  })
  const attend = Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep(attendMillis)
      counts.pending = context.pending
      if (!isUp()) continue
      publisher.sendAgain(false)
      if (!missedEvents) continue
      missedEvents = false
      yield* replay
    }
  })
  const watch = Effect.gen(function* () {
    for (;;) {
      yield* lookAtFloor
      yield* checkEvents
      yield* Effect.sleep(floorMillis)
    }
  })

  // --- The run

  const follower = yield* makeFollower({
    reader,
    objects,
    context,
    textMax: options.size.max,
    notice,
    isDraining: () => phase === "draining",
  })
  const schedule = new Schedule(options.ratePerSecond, options.durationMillis)
  const sendAll = pace(schedule, {
    offered: (count) => {
      counts.offered = count
    },
    send: (due) => {
      if (!isUp() || publisher.isFull || context.pending >= pendingMax) return false
      publisher.send(objects[counts.sent % objects.length]!.next(due))
      counts.sent += 1
      return true
    },
  })

  const drain = Effect.gen(function* () {
    let [moved, movedAt] = ["", now()]
    for (;;) {
      const [awaited, unanswered] = objects.reduce(
        ([first, second], object) => [first + object.awaited, second + object.unanswered],
        [0, 0],
      )
      if (publisher.unconfirmed + awaited + unanswered === 0) return
      const state = `${counts.stored} ${counts.answered} ${counts.verified} ${counts.unanswered}`
      if (state !== moved) [moved, movedAt] = [state, now()]
      const waitMillis = timeoutMillis + graceMillis
      if (now() - movedAt > waitMillis) {
        const refusal = publisher.refusal === undefined ? "" : `; the broker says: ${publisher.refusal}`
        const found = verify ? `${awaited} not found, ${unanswered} not answered` : `${awaited} not answered`
        const reason = `not verified: ${publisher.unconfirmed} appends are not stored, ${found}, and nothing moved for ${waitMillis / 1_000} s${refusal}`
        return yield* new LoadUnfinished({ reason })
      }
      yield* Effect.sleep(20)
    }
  })

  const untilViolation = <A, E>(effect: Effect.Effect<A, E>) => Effect.raceFirst(effect, Deferred.await(failed))
  yield* Effect.forkIn(attend, scope)
  yield* Effect.forkIn(watch, scope)
  return {
    tally,
    phase: () => phase,
    completelyRead: follower.completelyRead,
    elapsedMillis: () => now() - startedAt,
    send: untilViolation(
      Effect.gen(function* () {
        if (verify) {
          yield* follower.readBases
          yield* Effect.forkIn(follower.follow, scope)
        }
        phase = "sending"
        yield* sendAll
      }),
    ),
    finish: untilViolation(
      Effect.gen(function* () {
        phase = "draining"
        yield* drain
        counts.pending = context.pending
        phase = "reading"
        if (verify) yield* follower.readAll
      }),
    ),
  }
})
