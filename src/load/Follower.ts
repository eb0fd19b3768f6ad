/** Reads the logs of a run back: where each began, then what comes, at the end everything once more. */
import { Clock, Effect, Fiber, type Scope } from "effect"
import type { ObjectId } from "../contract/ObjectId.ts"
import { CompleteRead } from "./CompleteRead.ts"
import type { LedgerContext } from "./LedgerContext.ts"
import type { ObjectLedger } from "./ObjectLedger.ts"
import type { Reader, ReadUnanswered } from "./Reader.ts"
import { monotonic } from "./Schedule.ts"
import { LoadUnfinished } from "./Violation.ts"

/** A log is read when it has so many answered appends to find, or when the first of them waits so long. */
const readyMany = 200
const readyMillis = 1_000
/** A log with anything else that is not settled is looked at this often. */
const lookMillis = 5_000
/** At the end nothing more comes, so there is nothing to wait for. */
const drainMillis = 100
/** Reads under way; one that is slow (its shard may be down) does not count. */
const readsAtOnce = 16
const slowReadMillis = 2_000
/** A read without any page for so long is asked for again. */
const silenceMillis = 10_000
/** Entries and characters that one read asks for. */
const entriesMax = 4_000
const charactersMax = 4 * 1024 * 1024

export interface FollowerOptions {
  readonly reader: Reader
  readonly objects: ReadonlyArray<ObjectLedger>
  readonly context: LedgerContext
  readonly textMax: number
  readonly notice: (text: string) => Effect.Effect<void>
  readonly isDraining: () => boolean
}

export const makeFollower = Effect.fnUntraced(function* ({
  context,
  isDraining,
  notice,
  objects,
  reader,
  textMax,
}: FollowerOptions) {
  const now = yield* monotonic
  const scope: Scope.Scope = yield* Effect.scope
  const limit = Math.max(1, Math.min(entriesMax, Math.floor(charactersMax / textMax)))

  /** Reads again what was not answered, until that has failed for the time-out. */
  const persist = <A>(read: Effect.Effect<A, ReadUnanswered>): Effect.Effect<A, LoadUnfinished> =>
    Effect.suspend(() => {
      let failedSince: number | undefined
      const within = Effect.map(Clock.currentTimeMillis, (at) => at - (failedSince ??= at) < context.timeoutMillis)
      return Effect.mapError(
        Effect.retry(read, { while: () => within }),
        ({ message }) =>
          new LoadUnfinished({
            reason: `not verified: ${message}, and not in ${context.timeoutMillis / 1_000} s of trying again; is a worker running?`,
          }),
      )
    })

  /** Where each log ends before the run: what is appended later has a larger position. */
  const readBases = Effect.forEach(
    objects,
    (object) => {
      let position = 0
      return reader
        .read({ id: object.id as ObjectId, order: "desc", limit: 1 }, slowReadMillis, (entries) => {
          position = entries[0]?.position ?? 0
        })
        .pipe(persist, Effect.andThen(Effect.sync(() => object.startAt(position))))
    },
    { concurrency: readsAtOnce, discard: true },
  )

  const reading = new Set<ObjectLedger>()
  let slots = readsAtOnce

  /** Reads on from where the log was read to. */
  const readOn = Effect.fnUntraced(function* (object: ObjectLedger) {
    const began = now()
    const next = yield* reader.read(
      { id: object.id as ObjectId, afterPosition: object.position, limit },
      silenceMillis,
      (entries) => entries.forEach((entry) => object.read(entry, now())),
    )
    object.readTo(began, next !== undefined)
  })

  const startReading = Effect.fnUntraced(function* (object: ObjectLedger) {
    reading.add(object)
    slots -= 1
    const fiber = yield* readOn(object).pipe(
      Effect.catchTag("ReadUnanswered", (error) => {
        object.unreadable()
        return notice(error.message)
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

  const isDue = ({ awaited, lookedAt, ready, readySince, unanswered }: ObjectLedger, at: number): boolean =>
    ready >= readyMany ||
    (readySince !== undefined && at - readySince >= (isDraining() ? drainMillis : readyMillis)) ||
    (awaited + unanswered > 0 && at - lookedAt >= (isDraining() ? readyMillis : lookMillis))

  let turn = 0
  const follow = Effect.gen(function* () {
    for (;;) {
      const at = now()
      for (let looked = 0; looked < objects.length && slots > 0; looked++) {
        const object = objects[turn]!
        turn = (turn + 1) % objects.length
        if (!reading.has(object) && isDue(object, at)) yield* startReading(object)
      }
      yield* Effect.sleep(20)
    }
  })

  let completelyRead = 0
  const readCompletely = Effect.fnUntraced(function* (object: ObjectLedger) {
    const check = new CompleteRead(object, context)
    let after: string | undefined
    do {
      after = yield* reader.read({ id: object.id as ObjectId, limit, after }, silenceMillis, (entries) =>
        entries.forEach((entry) => check.entry(entry)),
      )
    } while (after !== undefined)
    check.end()
    completelyRead += 1
  }, persist)

  return {
    readBases,
    follow: follow as Effect.Effect<never>,
    /** Each log to which something was sent, from its beginning. */
    readAll: Effect.suspend(() =>
      Effect.forEach(
        objects.filter(({ sent }) => sent > 0),
        readCompletely,
        { concurrency: readsAtOnce, discard: true },
      ),
    ),
    completelyRead: () => completelyRead,
  }
})
