/** Whoever needs a shard that is not verified yet waits for one verification, not for those of all who came before. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { placementOf } from "../../src/placement/guard.ts"
import type { Connected } from "../../src/shard/sessions.ts"
import { unfit } from "../../src/shard/transient.ts"
import { makeShard, verifyLater } from "../../src/shard/verify.ts"

/** A shard whose verification hangs in its connection until it is told how that ends. */
const hanging = Effect.gen(function* () {
  const attempts: Array<Deferred.Deferred<Connected, ReturnType<typeof unfit>>> = []
  const shard = makeShard(
    "a",
    "a.db",
    Effect.suspend(() => {
      const attempt = Deferred.makeUnsafe<Connected, ReturnType<typeof unfit>>()
      attempts.push(attempt)
      return Deferred.await(attempt)
    }),
  )
  const placement = placementOf([{ name: "a", weight: 1 }])
  const scope = yield* Effect.scope
  const verified = verifyLater({ shards: [shard], autoMigrate: true, placement }, shard, scope)
  return { attempts, shard, verified }
})

const refused = unfit("25006", "the server is a standby")

/** Lets all fibers go on as far as they can. */
const running = TestClock.adjust(0)

describe("verifyLater", () => {
  it.effect("all who wait get the result of the one that is under way", () =>
    Effect.gen(function* () {
      const { attempts, verified } = yield* hanging
      const waiting = yield* Effect.forEach(Array.from({ length: 20 }), () => Effect.forkChild(Effect.flip(verified)))
      yield* running
      assert.lengthOf(attempts, 1)
      yield* Deferred.fail(attempts[0]!, refused)
      for (const error of yield* Fiber.joinAll(waiting)) assert.strictEqual(error.reason, "25006")
      assert.lengthOf(attempts, 1)
    }),
  )

  it.effect("goes on when who asked for it gives up, and is begun anew after it failed", () =>
    Effect.gen(function* () {
      const { attempts, verified } = yield* hanging
      const first = yield* Effect.forkChild(verified)
      yield* running
      const second = yield* Effect.forkChild(Effect.flip(verified))
      yield* running
      yield* Fiber.interrupt(first)
      assert.lengthOf(attempts, 1)
      yield* Deferred.fail(attempts[0]!, refused)
      yield* Fiber.join(second)
      const third = yield* Effect.forkChild(Effect.flip(verified))
      yield* running
      assert.lengthOf(attempts, 2)
      yield* Deferred.fail(attempts[1]!, refused)
      yield* Fiber.join(third)
    }),
  )

  it.effect("a server that does not answer fails all of them, at the end of one verification", () =>
    Effect.gen(function* () {
      const { attempts, verified } = yield* hanging
      const waiting = yield* Effect.forEach(Array.from({ length: 20 }), () => Effect.forkChild(Effect.flip(verified)))
      yield* TestClock.adjust("15 seconds")
      for (const error of yield* Fiber.joinAll(waiting)) assert.strictEqual(error.reason, "timeout")
      assert.lengthOf(attempts, 1)
    }),
  )
})
