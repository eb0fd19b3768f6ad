/** What a worker may hold, against its heap. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Logger } from "effect"
import { TestClock } from "effect/testing"
import { getHeapStatistics } from "node:v8"
import { layerMemory, MemoryBroker } from "../../src/broker/Memory.ts"
import { checkHeap, heapNeeded, watchHeap } from "../../src/cli/heap.ts"

const mebibyte = 1024 ** 2

/** What V8 makes of --max-old-space-size=512, less what it keeps for the young generation, which may be smaller. */
const ordinaryHeap = 512 * mebibyte

describe("the heap that a worker needs", () => {
  it("is there for two shards and sixteen at a broker with its defaults", () => {
    assert.isBelow(heapNeeded(2, mebibyte), ordinaryHeap)
    assert.isBelow(heapNeeded(16, mebibyte), ordinaryHeap)
  })

  it("grows with the shards, and with the largest message, of which there may be one in each place", () => {
    // A lane holds one as it came and decoded, its two consumers each bring one.
    assert.isAtLeast(heapNeeded(17, mebibyte) - heapNeeded(16, mebibyte), 4 * mebibyte)
    assert.isAtLeast(heapNeeded(2, 64 * mebibyte) - heapNeeded(2, mebibyte), 63 * (2 * 4 + 4) * mebibyte)
  })

  it.effect("is checked at the start, and said later", () =>
    Effect.gen(function* () {
      const broker = yield* MemoryBroker
      const logged: Array<string> = []
      yield* checkHeap(2)
      const watching = yield* Effect.forkChild(
        Effect.provide(watchHeap(2), Logger.layer([Logger.make(({ message }) => void logged.push(String(message)))])),
      )
      yield* broker.setMaxPayload(2 * mebibyte)
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(logged, [])

      const tooLarge = getHeapStatistics().heap_size_limit
      yield* broker.setMaxPayload(tooLarge)
      yield* TestClock.adjust("30 seconds")
      const { message } = yield* Effect.flip(checkHeap(2))
      assert.match(
        message,
        /^the heap of \d+ MiB is too small for 2 shards and a max_payload of \d+ bytes: set NODE_OPTIONS=--max-old-space-size=\d+, or lower max_payload of the broker$/,
      )
      assert.deepStrictEqual(logged, [message])
      yield* Fiber.interrupt(watching)
    }).pipe(Effect.provide(layerMemory())),
  )
})
