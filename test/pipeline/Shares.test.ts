/** What shards share: bounds that hold whatever is taken and given back, and turns. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Schema } from "effect"
import { type Lease, Shares } from "../../src/pipeline/Shares.ts"

const Step = Schema.Struct({
  shard: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 4 })),
  object: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 })),
  weight: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 })),
  gives: Schema.Boolean,
})

const fill = (shares: Shares, shard: string, weight: number, object = 1n): Array<Lease> => {
  const leases: Array<Lease> = []
  for (let lease; (lease = shares.tryTake(shard, object, weight)) !== undefined;) leases.push(lease)
  return leases
}

describe("shares", () => {
  it.effect.prop(
    "never exceed the whole but by one thing a shard, and what is held is the sum of what was taken",
    [Schema.Array(Step)],
    ([steps]) =>
      Effect.sync(() => {
        const shares = new Shares(100, 5)
        const taken: Array<readonly [string, Lease]> = []
        for (const { gives, object, shard, weight } of steps) {
          if (gives && taken.length > 0) {
            const [[, lease]] = taken.splice(weight % taken.length, 1) as [readonly [string, Lease]]
            lease.release()
            lease.release()
          } else {
            const lease = shares.tryTake(`s${shard}`, BigInt(object), weight)
            if (lease !== undefined) taken.push([`s${shard}`, lease])
          }
          const sum = taken.reduce((all, [, lease]) => all + lease.weight, 0)
          assert.strictEqual(shares.held, sum)
          const largest = new Map<string, number>()
          for (const [name, { weight: own }] of taken) largest.set(name, Math.max(largest.get(name) ?? 0, own))
          assert.isAtMost(sum, 100 + [...largest.values()].reduce((all, own) => all + own, 0))
          for (const name of new Set(taken.map(([each]) => each))) {
            const own = taken.filter(([each]) => each === name).reduce((all, [, lease]) => all + lease.weight, 0)
            assert.strictEqual(shares.heldBy(name), own)
          }
        }
        for (const [, lease] of taken) lease.release()
        assert.strictEqual(shares.held, 0)
        for (let shard = 0; shard < 5; shard++) assert.strictEqual(shares.heldBy(`s${shard}`), 0)
      }),
  )

  it("what is sure for a shard is there, however many others give nothing back", () => {
    for (const n of [1, 2, 3, 7, 15]) {
      const shares = new Shares(32_000, n + 1)
      // One after the other, so that the first has most.
      for (let shard = 0; shard < n; shard++) fill(shares, `s${shard}`, 10)
      assert.isAtMost(shares.held, 32_000)
      const own = fill(shares, "other", 10, 1n)
      // A single object has half of it.
      assert.isAtLeast(own.length * 10, 32_000 / (2 * (n + 1)) / 2 - 10)
    }
  })

  it("a shard that is alone has three quarters or less, one of several that come at once its part", () => {
    const alone = new Shares(1_000, 2)
    for (let object = 1n; object < 100n; object++) fill(alone, "a", 1, object)
    assert.approximately(alone.held, 500, 2)
    const several = new Shares(1_000, 4)
    for (let object = 1n; object < 100n; object++) {
      for (const shard of ["a", "b", "c", "d"]) several.tryTake(shard, object, 5)
    }
    for (const shard of ["a", "b", "c", "d"]) assert.approximately(several.heldBy(shard), 225, 20)
  })

  it("one object of a shard leaves room for another one", () => {
    const shares = new Shares(1_000, 1)
    const many = fill(shares, "a", 10, 1n)
    assert.isAtLeast(many.length, 30)
    assert.isDefined(shares.tryTake("a", 2n, 10))
  })

  it.effect("who comes later does not overtake who waits, though there would be room for it", () =>
    Effect.gen(function* () {
      const shares = new Shares(1_000, 1)
      const held = fill(shares, "a", 100, 1n)
      const waiting = yield* Effect.forkChild(shares.take("a", 1n, 400), { startImmediately: true })
      assert.isAbove(shares.waiting, 0)
      held.pop()!.release()
      assert.isUndefined(shares.tryTake("a", 1n, 100))
      for (const lease of held) lease.release()
      const lease = yield* Fiber.join(waiting)
      assert.strictEqual(shares.heldBy("a"), 400)
      lease.release()
      assert.isDefined(shares.tryTake("a", 1n, 100))
    }),
  )

  it("who holds nothing may take one thing, however large", () => {
    const shares = new Shares(10, 2)
    const large = shares.tryTake("a", 1n, 50)
    assert.isDefined(large)
    assert.isUndefined(shares.tryTake("a", 2n, 1))
    assert.isDefined(shares.tryTake("b", 1n, 50))
    large!.release()
    assert.isDefined(shares.tryTake("a", 1n, 50))
  })

  it.effect("those who wait are served object by object, and who is interrupted is not", () =>
    Effect.gen(function* () {
      const shares = new Shares(20, 2)
      const held = shares.tryTake("a", 9n, 10)!
      const order: Array<string> = []
      const ask = (name: string, object: bigint) =>
        Effect.forkChild(
          shares.use("a", object, 10, () => Effect.sync(() => void order.push(name))),
          { startImmediately: true },
        )
      const first = yield* ask("1", 1n)
      const second = yield* ask("1 again", 1n)
      const third = yield* ask("2", 2n)
      const fourth = yield* ask("1 once more", 1n)
      assert.strictEqual(shares.waiting, 4)
      yield* Fiber.interrupt(second)
      assert.strictEqual(shares.waiting, 3)
      held.release()
      for (const fiber of [first, third, fourth]) yield* Fiber.join(fiber)
      assert.deepStrictEqual(order, ["1", "2", "1 once more"])
      assert.deepStrictEqual([shares.held, shares.waiting], [0, 0])
    }),
  )
})
