/**
 * A run of the load generator: sends appends by the schedule, takes the events, follows the logs, and at the end reads
 * each log completely. It ends with the first violation.
 *
 * What it goes by. An append that the broker acknowledged must be in the log, once: the log is what proves it, read through
 * the service. Events arrive over core NATS, which drops them while the connection is down; a missing one is no loss.
 * While a log can't be read, nothing in it counts as missing, so outages give no false alarm.
 */
import { Clock, Deferred, Effect, Exit, Fiber, type Redacted, Schema, type Scope } from "effect"
import type { ObjectId } from "../domain/ObjectId.ts"
import { ClientFailed } from "../cli/Client.ts"
import { CompleteRead } from "./CompleteRead.ts"
import { connected } from "./connected.ts"
import { readEvent } from "./events.ts"
import { type LedgerContext, ObjectLedger } from "./ObjectLedger.ts"
import { Publisher } from "./Publisher.ts"
import { Reader, type ReadUnanswered } from "./Reader.ts"
import { Schedule } from "./Schedule.ts"
import { Tally } from "./Tally.ts"
import { payloadMax, type Size, Texts } from "./Texts.ts"
import { Violation } from "./Violation.ts"

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
  readonly notice: (text: string) => Effect.Effect<void>
}

/** The run could not be brought to an end: nothing is known to be wrong, and not all is known to be right. */
export class LoadUnfinished extends Schema.TaggedError<LoadUnfinished>()("LoadUnfinished", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** Appends under way and not settled, beyond which nothing is sent: about 150 MB. */
const pendingMax = 400_000
/** Appends sent without a pause, so that answers are taken in between. */
const sliceMax = 1_000
/** A log is read when it has so many appends to find, or when the first of them waits so long. */
const awaitedMany = 200
const awaitedMillis = 1_000
/** Reads under way; one that is slow (its shard may be down) does not count. */
const readsAtOnce = 16
const slowReadMillis = 2_000
const silenceMillis = 10_000
/** Entries and characters that one read asks for. */
const readEntriesMax = 4_000
const readCharactersMax = 4 * 1024 * 1024

export type Phase = "starting" | "sending" | "draining" | "reading"

export interface Load {
  readonly tally: Tally
  readonly phase: () => Phase
  /** Objects whose logs were read completely at the end. */
  readonly completelyRead: () => number
  readonly elapsedMillis: () => number
  /** Sends until the duration is over or it is interrupted; then finish. */
  readonly send: Effect.Effect<void, Violation | LoadUnfinished>
  /** Waits for what is under way and checks everything. */
  readonly finish: Effect.Effect<void, Violation | LoadUnfinished>
}

export const makeLoad = Effect.fnUntraced(function* (
  options: LoadOptions,
): Effect.fn.Return<Load, ClientFailed, Scope.Scope> {
  const clock = yield* Clock.Clock
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const startedAt = now()
  const scope = yield* Effect.scope
  const tally = new Tally()
  const { counts } = tally
  const texts = new Texts(options.run, options.size)
  const failed = Deferred.makeUnsafe<never, Violation>()
  let phase: Phase = "starting"
  let completelyRead = 0

  const context: LedgerContext = {
    texts,
    verify: options.verify,
    timeoutMillis: options.timeoutMillis,
    counters: counts,
    pending: 0,
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

  const { connection, isUp } = yield* connected(options.servers, () => publisher.sendAgain(true), options.notice)
  const publisher = new Publisher({
    connection,
    topic: options.logsTopic,
    texts,
    now,
    stored: (append, seq, at) => {
      counts.stored += 1
      append.object.stored(append, seq, at)
    },
  })
  const reader = new Reader(connection, options.queryTopic, `${options.run}.read-`)
  const runPrefix = `${options.run}.`
  connection.subscribe(options.responseTopic, {
    callback: (error, message) => {
      if (error !== null) return
      const event = readEvent(message.data, runPrefix)
      if (event === undefined) return
      if (event.type === "query") return void reader.receive(event)
      if (event.type === "refused" && reader.receive(event)) return
      const name = texts.parse(event.requestId)
      const object = name === undefined ? undefined : objects[name.object]
      if (name === undefined || object === undefined) return
      if (event.type === "refused") {
        return context.violated("refused", object, `append ${name.number}: ${event.code}: ${event.reason}`)
      }
      if (event.id !== String(object.id)) {
        return context.violated("contradicted", object, `the event of append ${name.number} names object ${event.id}`)
      }
      const at = now()
      const due = object.answered(name.number, event.place, at)
      if (due !== undefined) tally.answered(at - due)
    },
  })
  yield* Effect.promise(() => connection.flush())
  const allowed = connection.info?.max_payload ?? Number.POSITIVE_INFINITY
  if (payloadMax(options.size) > allowed) {
    const reason = `--size: texts of ${options.size.max} characters need up to ${payloadMax(options.size)} bytes, the broker takes ${allowed}`
    return yield* new ClientFailed({ reason })
  }

  // --- Reading back

  const readEntries = Math.max(1, Math.min(readEntriesMax, Math.floor(readCharactersMax / options.size.max)))

  /** Reads on from where the log was read to. */
  const follow = Effect.fnUntraced(function* (object: ObjectLedger) {
    const began = now()
    const next = yield* reader.read(
      { id: object.id as ObjectId, afterPosition: object.position, limit: readEntries },
      silenceMillis,
      (entries) => entries.forEach((entry) => object.read(entry, now())),
    )
    object.readTo(began, next !== undefined)
  })

  const reading = new Set<ObjectLedger>()
  let slots = readsAtOnce
  const startFollowing = Effect.fnUntraced(function* (object: ObjectLedger) {
    reading.add(object)
    slots -= 1
    const fiber = yield* follow(object).pipe(
      Effect.catchTag("ReadUnanswered", (error) => {
        object.unreadable()
        return options.notice(error.message)
      }),
      Effect.ensuring(Effect.sync(() => reading.delete(object))),
      Effect.forkIn(scope),
    )
    yield* Fiber.await(fiber).pipe(
      Effect.timeoutOption(slowReadMillis),
      Effect.ensuring(Effect.sync(() => (slots += 1))),
      Effect.forkIn(scope),
    )
  })

  const isDue = ({ awaited, awaitedSince }: ObjectLedger, at: number): boolean =>
    awaited >= awaitedMany ||
    (awaitedSince !== undefined && at - awaitedSince >= (phase === "draining" ? 100 : awaitedMillis))

  let turn = 0
  const followAll = Effect.gen(function* () {
    for (;;) {
      const at = now()
      for (let looked = 0; looked < objects.length && slots > 0; looked++) {
        const object = objects[turn]!
        turn = (turn + 1) % objects.length
        if (isDue(object, at) && !reading.has(object)) yield* startFollowing(object)
      }
      yield* Effect.sleep(20)
    }
  })

  // --- Sending

  /** Where each log ends before the run: what is appended later has a larger position. */
  const readBases = Effect.forEach(
    objects,
    Effect.fnUntraced(function* (object) {
      let position = 0
      yield* reader.read({ id: object.id as ObjectId, order: "desc", limit: 1 }, slowReadMillis, (entries) => {
        position = entries[0]?.position ?? 0
      })
      object.startAt(position)
    }, retryReads(options)),
    { concurrency: readsAtOnce, discard: true },
  )

  const schedule = new Schedule(options.ratePerSecond, options.durationMillis)
  const sendAll = Effect.gen(function* () {
    const began = now()
    const ends = options.durationMillis ?? Number.POSITIVE_INFINITY
    for (;;) {
      const elapsed = now() - began
      counts.offered = schedule.dueBy(elapsed)
      const until = Math.min(counts.offered, counts.sent + sliceMax)
      while (counts.sent < until && isUp() && !publisher.isFull && context.pending < pendingMax) {
        const object = objects[counts.sent % objects.length]!
        publisher.send(object.next(began + schedule.dueAtMillis(counts.sent)))
        counts.sent += 1
      }
      if (counts.sent >= schedule.total || elapsed >= ends) return
      const behind = counts.sent < counts.offered
      const pause = behind ? 1 : Math.max(1, began + schedule.dueAtMillis(counts.sent) - now())
      yield* Effect.sleep(Math.min(pause, Math.max(1, ends - elapsed)))
    }
  })

  const attend = Effect.gen(function* () {
    for (;;) {
      yield* Effect.sleep(100)
      if (isUp()) publisher.sendAgain(false)
      counts.pending = context.pending
      const at = now()
      for (const object of objects) counts.unanswered += object.expire(at)
    }
  })

  // --- The end

  const awaited = () => objects.reduce((sum, object) => sum + object.awaited, 0)
  const drain = Effect.gen(function* () {
    let progress = ""
    let progressAt = now()
    for (;;) {
      const open = publisher.unconfirmed + awaited()
      if (open === 0) return
      const state = `${counts.stored} ${counts.answered} ${counts.verified}`
      if (state !== progress) {
        progress = state
        progressAt = now()
      }
      if (now() - progressAt > options.timeoutMillis + 2 * silenceMillis) {
        const refusal = publisher.refusal === undefined ? "" : `; the broker says: ${publisher.refusal}`
        return yield* new LoadUnfinished({
          reason: `not verified: ${publisher.unconfirmed} appends were not acknowledged by the broker and ${awaited()} not found, and nothing moved for ${(options.timeoutMillis + 2 * silenceMillis) / 1_000} s${refusal}`,
        })
      }
      yield* Effect.sleep(20)
    }
  })

  const readCompletely = Effect.fnUntraced(function* (object: ObjectLedger) {
    const check = new CompleteRead(object, context)
    let after: string | undefined
    do {
      after = yield* reader.read({ id: object.id as ObjectId, limit: readEntries, after }, silenceMillis, (entries) =>
        entries.forEach((entry) => check.entry(entry)),
      )
    } while (after !== undefined)
    check.end()
    completelyRead += 1
  }, retryReads(options))

  const untilViolation = <A, E>(effect: Effect.Effect<A, E>) => Effect.raceFirst(effect, Deferred.await(failed))

  yield* Effect.forkScoped(attend)
  const start = Effect.gen(function* () {
    if (options.verify) {
      yield* readBases
      yield* Effect.forkIn(followAll, scope)
    }
    phase = "sending"
    yield* sendAll
  })
  const end = Effect.gen(function* () {
    phase = "draining"
    yield* drain
    counts.pending = context.pending
    if (!options.verify) return
    phase = "reading"
    yield* Effect.forEach(
      objects.filter((object) => object.sent > 0),
      readCompletely,
      { concurrency: readsAtOnce, discard: true },
    )
  })
  return {
    tally,
    phase: () => phase,
    completelyRead: () => completelyRead,
    elapsedMillis: () => now() - startedAt,
    send: untilViolation(start),
    finish: untilViolation(end),
  }
})

/** Reads again what was not answered, until nothing came for the time-out. */
const retryReads =
  ({ timeoutMillis }: LoadOptions) =>
  <A>(read: Effect.Effect<A, ReadUnanswered>): Effect.Effect<A, LoadUnfinished> =>
    Effect.suspend(() => {
      let failedSince: number | undefined
      return read.pipe(
        Effect.tapError(() =>
          Effect.map(Clock.currentTimeMillis, (at) => {
            failedSince ??= at
          }),
        ),
        Effect.retry({
          while: () => Effect.map(Clock.currentTimeMillis, (at) => at - (failedSince ?? at) < timeoutMillis),
        }),
        Effect.mapError(
          (error) =>
            new LoadUnfinished({
              reason: `${error.message}, also after ${timeoutMillis / 1_000} s; is a worker running?`,
            }),
        ),
      )
    })
