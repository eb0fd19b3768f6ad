/**
 * Memory that the shards of a worker share: nobody is kept from it by others who don't give theirs back.
 *
 * Half of it is parted equally: that is sure for each shard. Of the other half a shard may have half of what the others leave (a dynamic
 * threshold, as switches use for their buffers); an object may have half of what the others leave of its shard's. Whoever holds nothing may
 * take one thing, however large and whatever is left, so that all get somewhere. Those who wait are served shard by shard in turn, in
 * a shard object by object.
 */
import { Effect } from "effect"

/** What was taken. Weights are bytes. */
export interface Lease {
  readonly weight: number
  /** Gives a part back. */
  shrink(weight: number): void
  /** Gives all of it back; once more does nothing. */
  release(): void
}

interface Waiting {
  readonly weight: number
  readonly grant: (lease: Lease) => void
}

interface Shard {
  held: number
  /** What each object holds. */
  readonly objects: Map<bigint, number>
  /** In turn: the first one is next. */
  readonly waiting: Map<bigint, Array<Waiting>>
}

/** Moves an entry to the end. */
const rotate = <K, V>(map: Map<K, V>, key: K, value: V): void => {
  map.delete(key)
  map.set(key, value)
}

export class Shares {
  /** What is sure for each shard, and what they compete for. */
  readonly #sure: number
  readonly #common: number
  readonly #shards = new Map<string, Shard>()
  #held = 0
  /** What shards hold beyond what is sure for them. */
  #excess = 0
  #waiting = 0
  readonly #listeners = new Set<() => void>()

  /** So much for so many shards. */
  constructor(capacity: number, shards: number) {
    this.#common = capacity / 2
    this.#sure = this.#common / Math.max(1, shards)
  }

  get held(): number {
    return this.#held
  }

  /** How many wait. */
  get waiting(): number {
    return this.#waiting
  }

  heldBy(shard: string): number {
    return this.#shards.get(shard)?.held ?? 0
  }

  /** Takes it, if it fits now and nobody of this shard waits for it. Without an object only the shard's share counts. */
  tryTake(shard: string, object: bigint | undefined, weight: number): Lease | undefined {
    const found = this.#shard(shard)
    return found.waiting.size === 0 && this.#fits(found, object, weight) ? this.#give(found, object, weight) : undefined
  }

  /** Adds to what a shard holds, if that fits now; for who counts by himself what he holds, and gives it back by `remove`. */
  tryAdd(shard: string, weight: number): boolean {
    const found = this.#shard(shard)
    const fits = this.#fits(found, undefined, weight)
    if (fits) this.#add(found, weight)
    return fits
  }

  remove(shard: string, weight: number): void {
    this.#add(this.#shard(shard), -weight)
    this.#released()
  }

  /** Runs with what it takes, once it is its turn; interruption leaves the queue. */
  use<A, E, R>(
    shard: string,
    object: bigint,
    weight: number,
    run: (lease: Lease) => Effect.Effect<A, E, R>,
  ): Effect.Effect<A, E, R> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(restore(this.take(shard, object, weight)), (lease) =>
        Effect.ensuring(
          restore(run(lease)),
          Effect.sync(() => lease.release()),
        ),
      ),
    )
  }

  /** Waits for its turn; the lease is to be given back. */
  take(shard: string, object: bigint, weight: number): Effect.Effect<Lease> {
    return Effect.suspend(() => {
      const now = this.tryTake(shard, object, weight)
      if (now !== undefined) return Effect.succeed(now)
      const { waiting } = this.#shard(shard)
      let granted: Lease | undefined
      const turn = Effect.callback<void>((resume) => {
        const own: Waiting = {
          weight,
          grant: (lease) => {
            granted = lease
            resume(Effect.void)
          },
        }
        const queue = waiting.get(object)
        if (queue === undefined) waiting.set(object, [own])
        else queue.push(own)
        this.#waiting++
        return Effect.sync(() => this.#forget(waiting, object, own))
      })
      return Effect.onInterrupt(
        Effect.map(turn, () => granted!),
        // Between the grant and the moment at which the fiber goes on.
        () => Effect.sync(() => granted?.release()),
      )
    })
  }

  /** Is called whenever something was given back, until the returned function is called. */
  onRelease(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  #shard(name: string): Shard {
    let found = this.#shards.get(name)
    if (found === undefined) this.#shards.set(name, (found = { held: 0, objects: new Map(), waiting: new Map() }))
    return found
  }

  /** What a shard may hold at present. */
  #limit({ held }: Shard): number {
    const ofOthers = this.#excess - Math.max(0, held - this.#sure)
    return this.#sure + (this.#common - ofOthers) / 2
  }

  #fits(shard: Shard, object: bigint | undefined, weight: number): boolean {
    if (shard.held === 0) return true
    const limit = this.#limit(shard)
    if (shard.held + weight > limit) return false
    const ofObject = object === undefined ? 0 : (shard.objects.get(object) ?? 0)
    return ofObject === 0 || ofObject + weight <= (limit - (shard.held - ofObject)) / 2
  }

  #add(shard: Shard, more: number): void {
    this.#held += more
    this.#excess -= Math.max(0, shard.held - this.#sure)
    shard.held += more
    this.#excess += Math.max(0, shard.held - this.#sure)
  }

  #give(shard: Shard, object: bigint | undefined, weight: number): Lease {
    const add = (more: number) => {
      this.#add(shard, more)
      if (object === undefined) return
      const left = (shard.objects.get(object) ?? 0) + more
      if (left > 0) shard.objects.set(object, left)
      else shard.objects.delete(object)
    }
    add(weight)
    let own = weight
    return {
      get weight() {
        return own
      },
      shrink: (less) => {
        own -= less
        add(-less)
        this.#released()
      },
      release: () => {
        if (own === 0) return
        add(-own)
        own = 0
        this.#released()
      },
    }
  }

  #released(): void {
    if (this.#waiting > 0) this.#grantAll()
    // Those of now: one that is called may listen anew.
    for (const listener of Array.from(this.#listeners)) listener()
  }

  /** Serves those who wait, in turn, until a round gives nothing to anybody. */
  #grantAll(): void {
    for (let granted = true; granted && this.#waiting > 0;) {
      granted = false
      for (const [name, shard] of Array.from(this.#shards)) {
        if (!this.#grantOne(shard)) continue
        granted = true
        rotate(this.#shards, name, shard)
      }
    }
  }

  #grantOne(shard: Shard): boolean {
    for (const [object, queue] of shard.waiting) {
      const [first] = queue
      if (!this.#fits(shard, object, first!.weight)) {
        // What the shard may hold is used up: so it is for its other objects.
        if (shard.held + first!.weight > this.#limit(shard)) return false
        continue
      }
      queue.shift()
      this.#waiting--
      if (queue.length === 0) shard.waiting.delete(object)
      else rotate(shard.waiting, object, queue)
      first!.grant(this.#give(shard, object, first!.weight))
      return true
    }
    return false
  }

  #forget(waiting: Map<bigint, Array<Waiting>>, object: bigint, own: Waiting): void {
    const queue = waiting.get(object)
    const at = queue?.indexOf(own) ?? -1
    if (queue === undefined || at < 0) return
    queue.splice(at, 1)
    this.#waiting--
    if (queue.length === 0) waiting.delete(object)
  }
}
