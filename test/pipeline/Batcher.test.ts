/** What is asked for while a batch is under way is done in the next one. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Latch } from "effect"
import { Batcher } from "../../src/pipeline/Batcher.ts"

const options = { inputsMax: 3, sizeMax: 100, size: (input: number) => input, atOnce: 1 }

describe("batcher", () => {
  it.effect("batches are what waits, within both bounds; each gets its own outcome", () =>
    Effect.gen(function* () {
      const gate = Latch.makeUnsafe(false)
      const batches: Array<ReadonlyArray<number>> = []
      const batcher = new Batcher<number, string, string>({
        ...options,
        run: (inputs) => {
          batches.push(inputs)
          const outcomes = inputs.map((input) => (input === 13 ? Exit.fail("unlucky") : Exit.succeed(`got ${input}`)))
          return Effect.as(gate.await, outcomes)
        },
      })
      yield* Effect.forkScoped(batcher.run, { startImmediately: true })
      const ask = (input: number) => Effect.forkChild(Effect.exit(batcher.ask(input)), { startImmediately: true })
      const first = yield* ask(1)
      while (batches.length === 0) yield* Effect.yieldNow
      const asked = yield* Effect.forEach([2, 13, 4, 5, 99, 150, 6], ask)
      const withdrawn = yield* ask(7)
      yield* Fiber.interrupt(withdrawn)
      yield* gate.open
      assert.deepStrictEqual(yield* Fiber.join(first), Exit.succeed("got 1"))
      const exits = yield* Effect.forEach(asked, Fiber.join)
      assert.deepStrictEqual(exits[1], Exit.fail("unlucky"))
      assert.deepStrictEqual(exits[6], Exit.succeed("got 6"))
      assert.deepStrictEqual(batches, [[1], [2, 13, 4], [5], [99], [150], [6]])
    }),
  )

  it.effect("a defect of a batch reaches those who wait for it, and whoever runs it", () =>
    Effect.gen(function* () {
      const batcher = new Batcher<number, string, never>({ ...options, run: () => Effect.die("broken") })
      const running = yield* Effect.forkChild(Effect.exit(batcher.run))
      const exit = yield* Effect.exit(batcher.ask(1))
      assert.isTrue(Exit.isFailure(exit))
      assert.isTrue(Exit.isFailure(yield* Fiber.join(running)))
    }),
  )
})
