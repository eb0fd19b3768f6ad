/**
 * Where an object's log lives: id -> slot -> shard.
 *
 * An id hashes to one of 4,096 slots, and a placement gives every slot to a shard. Both functions are frozen: another
 * hash, another number of slots or another placement would look for existing logs in the wrong database. They are ours
 * and pinned by golden vectors, so that no library upgrade can move an object; the guard (`guard.ts`) pins the list of
 * shards.
 *
 * **Placement by simulated growth.** Shard 0 owns all slots; then the other shards join one after another, in list
 * order. Shard `k` takes `floor(4096 · w_k / (w_0 + … + w_k))` slots, each from the shard that holds most per weight. So
 * adding a shard at the end moves no more than its share, moves it only to the new shard, and never moves a slot
 * between old ones; and equal shards differ by a slot or two. Names do not matter for the placement, the order does.
 *
 * Rejected:
 * - Rendezvous hashing, or a ring with few points per shard, over slots: each slot falls to a shard independently, so
 *   a shard's number of slots has binomial noise, `sqrt(n)`. With 16 shards of 256 slots that is 6 %, and the busiest
 *   one held about 1.12 × the mean; the limit is 1.05.
 * - A ring of virtual nodes that is fine enough: the same noise, now over the points, asks for thousands of points for
 *   each shard, and a binary search per id instead of a table look-up.
 * - `slot % shards`: even, but adding a shard moves nearly everything.
 *
 * The price of growth is that the list has a history: shards can only be added at its end. The guard enforces that.
 */
import { Context, Effect, Layer, Schema } from "effect"

/** Number of slots. Fixed: 12 bits of hash, four slots each for the largest placement, 8 KiB of table. */
export const slotCount = 4_096

/** Most shards in one placement: with more, equal shards would get fewer than four slots, and be uneven. */
const shardsMax = 1_024

/** Bounds of a weight. Only ratios count, and within these no sum or quotient loses the precision that they need. */
const weightMin = 1e-6
const weightMax = 1e6

/** What a shard without a weight has. */
const weightDefault = 1

/** One shard of a placement. A weight of 2 means twice the slots of a shard with 1; a tiny one may get no slot at all. */
export const ShardSpec = Schema.Struct({ name: Schema.String, weight: Schema.Finite })
export type ShardSpec = typeof ShardSpec.Type

/** A shard as it is configured: without a weight it has `weightDefault`. */
export interface ShardOptions {
  readonly name: string
  readonly weight?: number | undefined
}

/** The list of shards cannot be a placement. */
export class InvalidPlacement extends Schema.TaggedError<InvalidPlacement>()("InvalidPlacement", {
  reason: Schema.String,
}) {
  override get message(): string {
    return `placement: ${this.reason}`
  }
}

/** What the ring answers; all plain functions, for the hot path. */
export class HashRing extends Context.Service<
  HashRing,
  {
    /** In the order of the configuration, which the placement goes by. */
    readonly shards: ReadonlyArray<ShardSpec>
    /** How many slots there are. */
    readonly slots: number
    /** The slot of an id: `0 … slots - 1`. */
    readonly slotOf: (id: bigint) => number
    /** The name of the shard that holds an id's log. All ids of a slot have the same one. */
    readonly shardOf: (id: bigint) => string
    /** How many slots the shard of this name holds. */
    readonly slotsOf: (shard: string) => number
  }
>()("objectlog/placement/HashRing") {
  /** The ring of an ordered list of shards. */
  static readonly make = Effect.fnUntraced(function* (
    options: ReadonlyArray<ShardOptions>,
  ): Effect.fn.Return<HashRing["Service"], InvalidPlacement> {
    const shards = yield* validate(options)
    // 8 KiB that stay in the cache, instead of an array of boxed or larger numbers.
    const owners = Uint16Array.from(place(shards))
    const held = count(owners, shards.length)
    const names = shards.map(({ name }) => name)
    return HashRing.of({
      shards,
      slots: slotCount,
      slotOf,
      shardOf: (id) => names[owners[slotOf(id)]!]!,
      slotsOf: (shard) => held[names.indexOf(shard)] ?? 0,
    })
  })

  /**
   * For tests: a ring in which `assign` says which shard (by index) has an id. It has one slot for each shard, so that
   * here too a slot decides the shard. An index without a shard is a bug of the test and throws.
   */
  static readonly layerFixed = (
    options: ReadonlyArray<ShardOptions>,
    assign: (id: bigint) => number,
  ): Layer.Layer<HashRing, InvalidPlacement> =>
    Layer.effect(
      HashRing,
      Effect.map(validate(options), (shards) => {
        const indexOf = (id: bigint): number => {
          const index = assign(id)
          if (shards[index] === undefined) throw new RangeError(`no shard has index ${index}, assigned to id ${id}`)
          return index
        }
        return HashRing.of({
          shards,
          slots: shards.length,
          slotOf: indexOf,
          shardOf: (id) => shards[indexOf(id)]!.name,
          slotsOf: (shard) => shards.filter(({ name }) => name === shard).length,
        })
      }),
    )
}

/** The ring that production uses. */
export const HashRingLive = (shards: ReadonlyArray<ShardOptions>): Layer.Layer<HashRing, InvalidPlacement> =>
  Layer.effect(HashRing, HashRing.make(shards))

/**
 * The slot of an id: the top 12 bits of MurmurHash3_x86_32, seed 0, over the id's 8 little-endian bytes. Frozen.
 *
 * The signed form of an id, as PostgreSQL's `bigint` holds it, has the same 64 bits and so the same slot.
 */
export const slotOf = (id: bigint): number => {
  // Through memory: the engine stores the 64 bits without making a bigint. Measured 6 ns for any id; `Number(id)` below
  // 2^53 takes 10 ns, `BigInt.asUintN` and `>>` 25 to 50 ns with garbage.
  scratch.setBigUint64(0, id, true)
  return murmur(scratch.getUint32(0, true), scratch.getUint32(4, true)) >>> 20
}

/**
 * The owner of each slot, as an index in `shards`: a pure function of the weights in their order. Frozen: every step is
 * an IEEE 754 operation with one exact result, so all machines agree. Expects valid weights.
 */
export const place = (shards: ReadonlyArray<Pick<ShardOptions, "weight">>): ReadonlyArray<number> => {
  const weights = shards.map((shard) => shard.weight ?? weightDefault)
  const owners: Array<number> = Array.from({ length: slotCount }, () => 0)
  const held = [slotCount]
  let total = weights[0] ?? weightDefault
  for (let joining = 1; joining < weights.length; joining++) {
    const weight = weights[joining]!
    total += weight
    const share = Math.floor((slotCount * weight) / total)
    const gives = donations(held, weights, share)
    // Each donor gives the first of its slots in the newcomer's own order of all slots.
    for (const slot of slotOrder(joining)) {
      const owner = owners[slot]!
      if (gives[owner] === 0) continue
      gives[owner]!--
      owners[slot] = joining
    }
    held.push(share)
  }
  return owners
}

// ---------------------------------------------------------------------------------------------------------------------
// Implementation
// ---------------------------------------------------------------------------------------------------------------------

/**
 * How many slots each shard gives to a newcomer: one at a time, from the shard that holds most per weight, the lower
 * index where equal. Takes them off `held`.
 */
const donations = (held: Array<number>, weights: ReadonlyArray<number>, share: number): Array<number> => {
  const gives = held.map(() => 0)
  for (let taken = 0; taken < share; taken++) {
    let donor = 0
    for (let index = 1; index < held.length; index++) {
      if (held[index]! / weights[index]! > held[donor]! / weights[donor]!) donor = index
    }
    held[donor]!--
    gives[donor]!++
  }
  return gives
}

/**
 * All slots in the order in which the shard that joins as number `joining` takes them. Pseudo-random, so that what it
 * takes is no run of neighbours; no two slots rank equal, because with one word fixed the hash is a bijection of the other.
 */
const slotOrder = (joining: number): ReadonlyArray<number> => {
  const ranks = Array.from({ length: slotCount }, (_, slot) => murmur(joining, slot))
  return Array.from(ranks.keys()).toSorted((left, right) => ranks[left]! - ranks[right]!)
}

/** Only used within one call of `slotOf`. */
const scratch = new DataView(new ArrayBuffer(8))

/** MurmurHash3_x86_32, seed 0, over two little-endian 32-bit words; only the low 32 bits of each argument count. */
const murmur = (first: number, second: number): number => {
  let hash = rotateLeft(scramble(first), 13)
  hash = (Math.imul(hash, 5) + 0xe6546b64) | 0
  hash = rotateLeft(hash ^ scramble(second), 13)
  hash = (Math.imul(hash, 5) + 0xe6546b64) | 0
  // The length in bytes, then the finaliser.
  hash ^= 8
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

const scramble = (word: number): number => Math.imul(rotateLeft(Math.imul(word, 0xcc9e2d51), 15), 0x1b873593)

const rotateLeft = (word: number, bits: number): number => (word << bits) | (word >>> (32 - bits))

const count = (owners: Uint16Array, shards: number): ReadonlyArray<number> => {
  const held: Array<number> = Array.from({ length: shards }, () => 0)
  for (const owner of owners) held[owner]!++
  return held
}

const validate = (options: ReadonlyArray<ShardOptions>): Effect.Effect<ReadonlyArray<ShardSpec>, InvalidPlacement> => {
  const refuse = (reason: string) => Effect.fail(new InvalidPlacement({ reason }))
  if (options.length === 0) return refuse("no shard is configured, at least one is needed")
  if (options.length > shardsMax) return refuse(`${options.length} shards are configured, at most ${shardsMax} can be`)
  const names = new Set<string>()
  const shards: Array<ShardSpec> = []
  for (const [index, { name, weight = weightDefault }] of options.entries()) {
    if (name === "") return refuse(`shard number ${index + 1} has an empty name`)
    if (names.has(name)) return refuse(`two shards are called ${name}`)
    // Written so that NaN fails too.
    if (!(weight >= weightMin && weight <= weightMax)) {
      return refuse(`shard ${name} has the weight ${weight}, allowed is a number from ${weightMin} to ${weightMax}`)
    }
    names.add(name)
    shards.push({ name, weight })
  }
  return Effect.succeed(shards)
}
