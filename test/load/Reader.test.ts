/** The reader of the load generator against a service played by the test: each entry once, whatever comes when. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber } from "effect"
import { TestClock } from "effect/testing"
import type { Entry } from "../../src/contract/Event.ts"
import type { ObjectId } from "../../src/contract/ObjectId.ts"
import { Reader } from "../../src/load/Reader.ts"

const entries = (from: number, to: number): Array<Entry> =>
  Array.from({ length: to - from + 1 }, (_, index) => {
    const position = from + index
    return { position, seq: 100 + position, timestamp: 10 * position, log: `entry ${position}` }
  })

/** A read that is under way, and what it has taken. */
const startRead = Effect.gen(function* () {
  const reader = new Reader({ isClosed: () => false, publish: () => undefined }, "query", "r")
  const taken: Array<number> = []
  const fiber = yield* reader
    .read({ id: 42n as ObjectId, afterPosition: 0 }, 10_000, (some) => taken.push(...some.map((one) => one.position)))
    .pipe(Effect.exit, Effect.forkChild({ startImmediately: true }))
  const page = (snapshot: string, number: number, last: boolean, from: number, to: number) =>
    reader.receive({
      type: "query",
      requestId: "r0",
      snapshot,
      page: number,
      last,
      entries: entries(from, to),
      next: undefined,
    })
  return { reader, taken, page, ended: Fiber.join(fiber) }
})

describe("Reader", () => {
  it.effect("joins what two workers send, and ends with the first last page", () =>
    Effect.gen(function* () {
      const { ended, page, taken } = yield* startRead
      page("s", 0, false, 1, 2)
      page("t", 0, false, 1, 3)
      page("t", 0, false, 1, 3)
      page("s", 1, true, 3, 4)
      // At once, and later.
      page("t", 1, true, 4, 6)
      assert.isTrue(Exit.isSuccess(yield* ended))
      page("u", 0, true, 1, 7)
      assert.deepStrictEqual(taken, [1, 2, 3, 4])
    }),
  )

  it.effect("takes nothing after it was refused", () =>
    Effect.gen(function* () {
      const { ended, page, reader, taken } = yield* startRead
      reader.receive({ type: "refused", requestId: "r0", code: "entry_too_large", reason: "no" })
      page("s", 0, true, 1, 2)
      assert.isTrue(Exit.isFailure(yield* ended))
      assert.deepStrictEqual(taken, [])
    }),
  )

  it.effect("takes nothing after it was given up, which is when no page came for the time", () =>
    Effect.gen(function* () {
      const { ended, page, taken } = yield* startRead
      yield* TestClock.adjust("9 seconds")
      page("s", 0, false, 1, 2)
      yield* TestClock.adjust("9 seconds")
      page("s", 1, false, 3, 4)
      yield* TestClock.adjust("20 seconds")
      assert.isTrue(Exit.isFailure(yield* ended))
      page("s", 2, true, 5, 6)
      assert.deepStrictEqual(taken, [1, 2, 3, 4])
    }),
  )
})
