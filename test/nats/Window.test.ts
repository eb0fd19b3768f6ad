/** Who asks for much has a turn too. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Latch } from "effect"
import { Window } from "../../src/nats/Window.ts"

/** Runs in a window until it is told to end; says when it begins. */
const hold = (window: Window, name: string, cost: number, begun: Array<string>) =>
  Effect.gen(function* () {
    const end = Latch.makeUnsafe(false)
    const fiber = yield* Effect.forkChild(
      window.within(cost)(
        Effect.andThen(
          Effect.sync(() => begun.push(name)),
          end.await,
        ),
      ),
      { startImmediately: true },
    )
    return { fiber, end: Effect.andThen(end.open, Fiber.join(fiber)) }
  })

describe("Window", () => {
  it.effect("gives first come, first served: what is large is not overtaken by what is small", () =>
    Effect.gen(function* () {
      const window = new Window(10)
      const begun: Array<string> = []
      const first = yield* hold(window, "first", 6, begun)
      const large = yield* hold(window, "large", 8, begun)
      // There would be room for each of them.
      const small = [yield* hold(window, "small 1", 1, begun), yield* hold(window, "small 2", 2, begun)]
      assert.deepStrictEqual(begun, ["first"])
      yield* first.end
      assert.deepStrictEqual(begun, ["first", "large", "small 1"])
      yield* large.end
      assert.deepStrictEqual(begun, ["first", "large", "small 1", "small 2"])
      for (const each of small) yield* each.end
    }),
  )

  it.effect("gives what is larger than itself its turn, alone", () =>
    Effect.gen(function* () {
      const window = new Window(10)
      const begun: Array<string> = []
      const small = yield* hold(window, "small", 1, begun)
      const huge = yield* hold(window, "huge", 1_000, begun)
      const next = yield* hold(window, "next", 1, begun)
      yield* small.end
      assert.deepStrictEqual(begun, ["small", "huge"])
      yield* huge.end
      yield* next.end
      assert.deepStrictEqual(begun, ["small", "huge", "next"])
    }),
  )

  it.effect("what is interrupted gives back what it had, and leaves its place", () =>
    Effect.gen(function* () {
      const window = new Window(10)
      const begun: Array<string> = []
      const first = yield* hold(window, "first", 10, begun)
      const waiting = yield* hold(window, "waiting", 10, begun)
      const next = yield* hold(window, "next", 5, begun)
      yield* Fiber.interrupt(waiting.fiber)
      assert.deepStrictEqual(begun, ["first"], "who only waited has nothing to give back")
      yield* Fiber.interrupt(first.fiber)
      assert.deepStrictEqual(begun, ["first", "next"])
      const last = yield* hold(window, "last", 5, begun)
      assert.deepStrictEqual(begun, ["first", "next", "last"])
      yield* next.end
      yield* last.end
    }),
  )
})
