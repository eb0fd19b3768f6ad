/** What several ask for is done together, within its bounds. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber } from "effect"
import { Batcher } from "../../src/pipeline/Batcher.ts"
import * as limits from "../../src/pipeline/limits.ts"

const start = Effect.sync(() => {
  const batches: Array<ReadonlyArray<number>> = []
  const batcher = new Batcher<number, number, never>({
    atOnce: 1,
    inputsMax: 3,
    sizeMax: 100,
    size: (input) => input,
    run: (inputs) =>
      Effect.sync(() => {
        batches.push(inputs)
        return inputs.map((input) => Exit.succeed(2 * input))
      }),
  })
  return { batcher, batches }
})

describe("Batcher", () => {
  it.effect("keeps to its bounds in number and in size; what is larger than that goes alone", () =>
    Effect.gen(function* () {
      const { batcher, batches } = yield* start
      const asking = yield* Effect.forkChild(
        Effect.forEach([1, 2, 3, 4, 60, 50, 200, 5], (input) => batcher.ask(input), { concurrency: "unbounded" }),
        { startImmediately: true },
      )
      yield* Effect.forkScoped(batcher.run)
      assert.deepStrictEqual(yield* Fiber.join(asking), [2, 4, 6, 8, 120, 100, 400, 10])
      assert.deepStrictEqual(batches, [[1, 2, 3], [4, 60], [50], [200], [5]])
    }).pipe(Effect.scoped),
  )

  it.effect("does nothing while nobody asks, and leaves out who has gone", () =>
    Effect.gen(function* () {
      const { batcher, batches } = yield* start
      const gone = yield* Effect.forkChild(batcher.ask(1), { startImmediately: true })
      yield* Fiber.interrupt(gone)
      yield* Effect.forkScoped(batcher.run)
      assert.strictEqual(yield* batcher.ask(2), 4)
      for (let i = 0; i < 20; i++) yield* Effect.yieldNow
      assert.deepStrictEqual(
        batches.filter((batch) => batch.length > 0),
        [[2]],
      )
      assert.isAtMost(batches.length, 2)
    }).pipe(Effect.scoped),
  )
})

describe("handBackDelay", () => {
  it("doubles up to a minute, each a fifth shorter or longer", () => {
    assert.deepStrictEqual(
      [1, 2, 3, 6, 7, 100].map((count) => limits.handBackDelay(count, 0.5)),
      [1_000, 2_000, 4_000, 32_000, 60_000, 60_000],
    )
    assert.deepStrictEqual([limits.handBackDelay(1, 0), limits.handBackDelay(1, 1)], [800, 1_200])
  })
})
