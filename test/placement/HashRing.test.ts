/**
 * Hash and placement are frozen: pinned by golden vectors and checked against an independent MurmurHash3. A literal that
 * has to change here means that existing logs would be looked for in another database.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { HashRing, HashRingLive, place, slotCount, slotOf } from "../../src/placement/HashRing.ts"
import { hashRingContract } from "./hashRingContract.ts"

/** MurmurHash3_x86_32 as published, over bytes: slow, and unlike the implementation. */
const murmur3 = (bytes: Uint8Array, seed: number): number => {
  const mask = 0xffff_ffffn
  const rotate = (word: bigint, bits: bigint) => ((word << bits) | (word >> (32n - bits))) & mask
  const scramble = (word: bigint) => (rotate((word * 0xcc9e2d51n) & mask, 15n) * 0x1b873593n) & mask
  const word = (from: number, length: number) => {
    let value = 0n
    for (let index = length - 1; index >= 0; index--) value = (value << 8n) | BigInt(bytes[from + index]!)
    return value
  }
  const tail = bytes.length - (bytes.length % 4)
  let hash = BigInt(seed)
  for (let at = 0; at < tail; at += 4) hash = (rotate(hash ^ scramble(word(at, 4)), 13n) * 5n + 0xe6546b64n) & mask
  hash ^= scramble(word(tail, bytes.length - tail))
  hash ^= BigInt(bytes.length)
  hash = ((hash ^ (hash >> 16n)) * 0x85ebca6bn) & mask
  hash = ((hash ^ (hash >> 13n)) * 0xc2b2ae35n) & mask
  return Number(hash ^ (hash >> 16n))
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value)

const bytesOf = (id: bigint): Uint8Array => {
  const bytes = new Uint8Array(8)
  for (let index = 0; index < 8; index++) bytes[index] = Number((id >> BigInt(8 * index)) & 0xffn)
  return bytes
}

const ObjectId = Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: 0n, maximum: 2n ** 64n - 1n }))
/** Every number of bits is as likely as any other. */
const AnyWidth = Schema.Tuple([ObjectId, Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 63 }))])
const Weights = Schema.Array(Schema.Finite.check(Schema.isBetween({ minimum: 0.1, maximum: 10 }))).check(
  Schema.isMinLength(2),
  Schema.isMaxLength(12),
)

const equal = (length: number): ReadonlyArray<{ readonly weight: number }> =>
  Array.from({ length }, () => ({ weight: 1 }))
const weighted = (weights: ReadonlyArray<number>) => place(weights.map((weight) => ({ weight })))

/** FNV-1a over the owners. */
const checksum = (owners: ReadonlyArray<number>): number => {
  let hash = 0x811c_9dc5
  for (const owner of owners) {
    hash = Math.imul(hash ^ (owner & 0xff), 0x0100_0193)
    hash = Math.imul(hash ^ (owner >>> 8), 0x0100_0193)
  }
  return hash >>> 0
}

const histogram = (values: Iterable<number>, length: number): ReadonlyArray<number> => {
  const counts: Array<number> = Array.from({ length }, () => 0)
  for (const value of values) counts[value]!++
  return counts
}

describe("slotOf", () => {
  it("is checked against a reference that gives the published vectors", () => {
    assert.strictEqual(murmur3(text(""), 0), 0)
    assert.strictEqual(murmur3(text(""), 1), 0x514e28b7)
    assert.strictEqual(murmur3(text(""), 0xffff_ffff), 0x81f16f39)
    assert.strictEqual(murmur3(new Uint8Array([0, 0, 0, 0]), 0), 0x2362f9de)
    assert.strictEqual(murmur3(new Uint8Array([0x21, 0x43, 0x65, 0x87]), 0), 0xf55b516b)
    assert.strictEqual(murmur3(text("hello"), 0), 0x248bfa47)
    assert.strictEqual(murmur3(text("hello, world"), 0), 0x149bbb7f)
  })

  it.each([
    [0n, 1592],
    [1n, 1328],
    [42n, 1784],
    [2n ** 32n - 1n, 657],
    [2n ** 32n, 941],
    [2n ** 53n - 1n, 2905],
    [2n ** 53n + 1n, 2213],
    [2n ** 63n, 1302],
    [2n ** 64n - 1n, 1575],
    [0x0123_4567_89ab_cdefn, 4009],
  ] as const)("is frozen: id %d is in slot %d", (id, slot) => {
    assert.strictEqual(slotOf(id), slot)
    assert.strictEqual(murmur3(bytesOf(id), 0) >>> 20, slot)
  })

  it.prop(
    "is the top of the hash of the id's little-endian bytes, also of its signed form",
    [AnyWidth],
    ([[bits, shift]]) => {
      const id = bits >> BigInt(shift)
      assert.strictEqual(slotOf(id), murmur3(bytesOf(id), 0) >>> 20)
      assert.strictEqual(slotOf(BigInt.asIntN(64, id)), slotOf(id))
    },
    { arbitrary: { runs: 2_000 } },
  )

  const ids = 400_000
  it.each([
    ["sequential from 0", (index: bigint) => index],
    ["sequential from 2^63", (index: bigint) => 2n ** 63n + index],
    ["every 4,096th", (index: bigint) => index * 4_096n],
    ["every 1,000th", (index: bigint) => index * 1_000n],
    ["upper half only", (index: bigint) => index << 32n],
    ["like snowflakes: time, machine, counter", (index: bigint) => (index << 22n) | (7n << 12n)],
    ["random", (index: bigint) => BigInt.asUintN(64, (index + 1n) * 0x9e37_79b9_7f4a_7c15n)],
  ] as const)("spreads evenly over the slots: ids %s", (_, idOf) => {
    const slots = histogram(
      Array.from({ length: ids }, (__, index) => slotOf(idOf(BigInt(index)))),
      slotCount,
    )
    const mean = ids / slotCount
    const chiSquare = slots.reduce((sum, count) => sum + (count - mean) ** 2 / mean, 0)
    // Of chance: 4,095 degrees of freedom, standard deviation 90.5. Six of those; a little evener than chance is welcome.
    assert.isBelow(chiSquare, slotCount + 6 * 90.5)
  })
})

describe("place", () => {
  it.each([
    [[1], 0xbcc31dc5],
    [[1, 1], 0x3e5a20a5],
    [[1, 1, 1], 0x36572aef],
    [[1, 1, 1, 1, 1], 0x4dadf9d2],
    [Array.from({ length: 16 }, () => 1), 0x698efa6d],
    [[1, 2.5, 0.5], 0xa183646d],
  ])("is frozen: weights %j", (weights, sum) => {
    assert.strictEqual(checksum(weighted(weights)), sum)
  })

  it("is frozen: the first slots of three equal shards", () => {
    assert.deepStrictEqual(place(equal(3)).slice(0, 16), [1, 1, 2, 2, 0, 0, 2, 2, 2, 2, 1, 1, 2, 0, 1, 2])
  })

  it("gives slots by weight", () => {
    assert.deepStrictEqual(histogram(weighted([1, 2.5, 0.5]), 3), [1024, 2560, 512])
  })

  const ids = 200_000
  it.each(Array.from({ length: 15 }, (_, index) => index + 2))("balances %d equal shards within 5 %%", (shards) => {
    const owners = place(equal(shards))
    const slots = histogram(owners, shards)
    assert.isAtMost(Math.max(...slots), (1.05 * slotCount) / shards)
    assert.isAtMost(Math.max(...slots) - Math.min(...slots), shards)
    const objects = histogram(
      Array.from({ length: ids }, (_, id) => owners[slotOf(BigInt(id))]!),
      shards,
    )
    assert.isAtMost(Math.max(...objects), (1.05 * ids) / shards)
  })

  it.prop("adding a shard moves exactly its share, only to it", [Weights], ([weights]) => {
    const newcomer = weights.length - 1
    const before = weighted(weights.slice(0, -1))
    const after = weighted(weights)
    const moved = after.filter((owner, slot) => owner !== before[slot])
    const total = weights.reduce((sum, weight) => sum + weight)
    assert.isTrue(moved.every((owner) => owner === newcomer))
    assert.strictEqual(moved.length, Math.floor((slotCount * weights[newcomer]!) / total))
  })

  it.prop("keeps every shard near its share by weight", [Weights], ([weights]) => {
    const total = weights.reduce((sum, weight) => sum + weight)
    for (const [index, held] of histogram(weighted(weights), weights.length).entries()) {
      // Rounding down once for each shard that joined is spread over the older ones.
      assert.closeTo(held, (slotCount * weights[index]!) / total, weights.length)
    }
  })

  it("takes slots from all over, not neighbours", () => {
    const owners = place(equal(2))
    const changes = owners.filter((owner, slot) => slot > 0 && owner !== owners[slot - 1]).length
    assert.closeTo(changes, slotCount / 2, 6 * Math.sqrt(slotCount / 4))
  })
})

describe("HashRingLive", () => {
  hashRingContract(HashRingLive)

  it.effect("answers from the placement, and not from the names", () =>
    Effect.gen(function* () {
      const ring = yield* HashRing.make([{ name: "x" }, { name: "y", weight: 3 }])
      const owners = weighted([1, 3])
      for (let id = 0n; id < 5_000n; id++) assert.strictEqual(ring.shardOf(id), ["x", "y"][owners[slotOf(id)]!])
      assert.deepStrictEqual([ring.slots, ring.slotsOf("x"), ring.slotsOf("y")], [4096, 1024, 3072])
    }),
  )
})

describe("HashRing.layerFixed", () => {
  hashRingContract((shards) => HashRing.layerFixed(shards, (id) => Number(id % BigInt(shards.length))))

  it.effect("puts ids where the test says, and throws where there is no shard", () =>
    Effect.gen(function* () {
      const ring = yield* HashRing
      assert.deepStrictEqual([ring.shardOf(7n), ring.shardOf(8n)], ["b", "a"])
      assert.throws(() => ring.shardOf(9n), "no shard has index 2, assigned to id 9")
    }).pipe(
      Effect.provide(HashRing.layerFixed([{ name: "a" }, { name: "b" }], (id) => (id === 7n ? 1 : id === 8n ? 0 : 2))),
    ),
  )
})
