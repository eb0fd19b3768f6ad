/** Which sessions are used again, with sessions that the test makes. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Latch } from "effect"
import { TestClock } from "effect/testing"
import { healthSeconds, unusedLooksMax } from "../../src/shard/limits.ts"
import { type Connect, sessionsOfShard, type Session } from "../../src/shard/sessions.ts"
import { unfit } from "../../src/shard/transient.ts"

const start = (keptMax = 8) =>
  Effect.gen(function* () {
    let opened = 0
    let ended = 0
    const closed: Array<number> = []
    const numbers = new WeakMap<object, number>()
    const connect: Connect = Effect.acquireRelease(
      Effect.sync(() => {
        const sql = {} as Session["sql"]
        numbers.set(sql, ++opened)
        return { sql, isFit: Effect.void }
      }),
      ({ sql }) => Effect.sync(() => void closed.push(numbers.get(sql)!)),
    )
    const make = sessionsOfShard(() => ended++)
    const [appends, reads] = [yield* make(connect, keptMax), yield* make(connect, keptMax)]
    const number = ({ sql }: Session) => Effect.sync(() => numbers.get(sql)!)
    /** Uses so many sessions at once; their numbers. */
    const together = (count: number, sessions = appends) =>
      Effect.gen(function* () {
        const all = Latch.makeUnsafe(false)
        let begun = 0
        return yield* Effect.forEach(
          Array.from({ length: count }),
          () =>
            sessions.use((session) =>
              Effect.gen(function* () {
                if (++begun === count) yield* all.open
                yield* all.await
                return yield* number(session)
              }),
            ),
          { concurrency: "unbounded" },
        )
      })
    return { appends, reads, closed, number, together, opened: () => opened, ended: () => ended }
  })

describe("sessions", () => {
  it.effect("one that is good is used again, also after an operation that failed by itself", () =>
    Effect.gen(function* () {
      const { appends, closed, number, opened } = yield* start()
      assert.strictEqual(yield* appends.use(number), 1)
      yield* Effect.ignore(appends.use(() => Effect.fail("its own affair")))
      assert.strictEqual(yield* appends.use(number), 1)
      assert.strictEqual(opened(), 1)
      assert.isEmpty(closed)
    }).pipe(Effect.scoped),
  )

  it.effect("one whose operation was interrupted, or died, is closed: nobody knows what it is doing", () =>
    Effect.gen(function* () {
      const { appends, closed, ended, number } = yield* start()
      const fiber = yield* Effect.forkChild(
        appends.use(() => Effect.never),
        { startImmediately: true },
      )
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(closed, [1])
      yield* Effect.exit(appends.use(() => Effect.die("a bug")))
      assert.deepStrictEqual(closed, [1, 2])
      assert.strictEqual(yield* appends.use(number), 3)
      assert.strictEqual(ended(), 0)
    }).pipe(Effect.scoped),
  )

  it.effect("a fault of the session ends all of its time, of every kind, and those in use when they come back", () =>
    Effect.gen(function* () {
      const { appends, closed, ended, number, reads, together } = yield* start()
      yield* together(2)
      yield* together(2, reads)
      const release = Latch.makeUnsafe(false)
      const inUse = yield* Effect.forkChild(
        reads.use((session) => Effect.andThen(release.await, number(session))),
        { startImmediately: true },
      )
      yield* Effect.ignore(appends.use(() => Effect.fail(unfit("57P01", "the server ends"))))
      assert.strictEqual(ended(), 1)
      assert.lengthOf(closed, 3)
      yield* release.open
      const last = yield* Fiber.join(inUse)
      assert.sameMembers(closed, [1, 2, 3, 4])
      assert.isAtMost(last, 4)
      assert.strictEqual(yield* reads.use(number), 5)
      // The fault of one from before says nothing of those that are there now.
      assert.strictEqual(ended(), 1)
    }).pipe(Effect.scoped),
  )

  it.effect("no more are kept than may be", () =>
    Effect.gen(function* () {
      const { closed, opened, together } = yield* start(2)
      yield* together(5)
      assert.lengthOf(closed, 3)
      yield* together(2)
      assert.strictEqual(opened(), 5)
    }).pipe(Effect.scoped),
  )

  it.effect("those that are not used are closed after some looks, but for one", () =>
    Effect.gen(function* () {
      const { appends, closed, together } = yield* start()
      yield* together(3)
      for (let i = 0; i < unusedLooksMax; i++) yield* appends.look(() => Effect.void)
      assert.isEmpty(closed)
      yield* appends.look(() => Effect.void)
      yield* appends.look(() => Effect.void)
      assert.lengthOf(closed, 2)
    }).pipe(Effect.scoped),
  )

  it.effect("one that does not answer a look in time is useless, and so are the others", () =>
    Effect.gen(function* () {
      const { appends, closed, ended, together } = yield* start()
      yield* together(2)
      const look = yield* Effect.forkChild(Effect.exit(appends.look(() => Effect.never)), { startImmediately: true })
      yield* TestClock.adjust(`${healthSeconds.answer} seconds`)
      assert.strictEqual((yield* Fiber.join(look))._tag, "Failure")
      assert.strictEqual(ended(), 1)
      assert.sameMembers(closed, [1, 2])
    }).pipe(Effect.scoped),
  )
})
