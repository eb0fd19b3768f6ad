/** What every HashRing has to do, whoever decides the placement. Run on the live one and on the twin for tests. */
import { assert, it } from "@effect/vitest"
import { Effect, type Layer, Schema } from "effect"
import { HashRing, InvalidPlacement, type ShardOptions } from "../../src/placement/HashRing.ts"

const ObjectId = Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: 0n, maximum: 2n ** 64n - 1n }))

const many = (length: number) => Array.from({ length }, (_, index) => ({ name: `shard-${index}` }))

export const hashRingContract = (
  layerOf: (shards: ReadonlyArray<ShardOptions>) => Layer.Layer<HashRing, InvalidPlacement>,
): void => {
  const ring = HashRing.pipe(Effect.provide(layerOf([{ name: "a" }, { name: "b", weight: 2 }, { name: "c" }])))

  it.effect("has the shards in the given order, with their weights", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual((yield* ring).shards, [
        { name: "a", weight: 1 },
        { name: "b", weight: 2 },
        { name: "c", weight: 1 },
      ])
    }),
  )

  it.effect("gives every slot to one shard", () =>
    Effect.gen(function* () {
      const { slots, slotsOf } = yield* ring
      assert.strictEqual(slotsOf("a") + slotsOf("b") + slotsOf("c"), slots)
      assert.strictEqual(slotsOf("d"), 0)
    }),
  )

  it.effect.prop("places every id in a slot and on a shard that has slots, always the same", [ObjectId], ([id]) =>
    Effect.gen(function* () {
      const { shardOf, slotOf, slots, slotsOf } = yield* ring
      const again = yield* ring
      assert.isTrue(Number.isInteger(slotOf(id)) && slotOf(id) >= 0 && slotOf(id) < slots)
      assert.isAbove(slotsOf(shardOf(id)), 0)
      assert.deepStrictEqual([again.slotOf(id), again.shardOf(id)], [slotOf(id), shardOf(id)])
    }),
  )

  it.effect("places all ids of a slot on one shard, and uses all shards", () =>
    Effect.gen(function* () {
      const { shardOf, slotOf } = yield* ring
      const owners = new Map<number, string>()
      for (let id = 0n; id < 20_000n; id++) {
        const owner = owners.get(slotOf(id)) ?? shardOf(id)
        assert.strictEqual(shardOf(id), owner)
        owners.set(slotOf(id), owner)
      }
      assert.sameMembers([...new Set(owners.values())], ["a", "b", "c"])
    }),
  )

  const invalid: ReadonlyArray<readonly [reason: string, shards: ReadonlyArray<ShardOptions>]> = [
    ["no shard is configured, at least one is needed", []],
    ["1025 shards are configured, at most 1024 can be", many(1025)],
    ["shard number 2 has an empty name", [{ name: "a" }, { name: "" }]],
    ["two shards are called a", [{ name: "a" }, { name: "b" }, { name: "a" }]],
    ...[0, -1, Number.NaN, Infinity, 1e-7, 1e7].map(
      (weight) =>
        [
          `shard b has the weight ${weight}, allowed is a number from 0.000001 to 1000000`,
          [{ name: "a" }, { name: "b", weight }],
        ] as const,
    ),
  ]
  it.effect.each(invalid)("refuses: %s", ([reason, shards]) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(HashRing.pipe(Effect.provide(layerOf(shards))))
      assert.instanceOf(error, InvalidPlacement)
      assert.strictEqual(error.message, `placement: ${reason}`)
    }),
  )

  it.effect("accepts 1,024 shards", () =>
    Effect.gen(function* () {
      const { shards, slotsOf } = yield* HashRing.pipe(Effect.provide(layerOf(many(1024))))
      assert.isTrue(shards.every(({ name }) => slotsOf(name) > 0))
    }),
  )
}
