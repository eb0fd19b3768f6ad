/** Which lanes of a worker take appends: what one that takes none may do depends on the others. */
import { Latch } from "effect"

export class Flow {
  readonly #stalled = new Set<string>()
  readonly #lanes: number
  /** Open while at least one lane takes appends. */
  readonly some = Latch.makeUnsafe(true)

  constructor(lanes: number) {
    this.#lanes = lanes
  }

  isStalled(shard: string): boolean {
    return this.#stalled.has(shard)
  }

  isSome(): boolean {
    return this.#stalled.size < this.#lanes
  }

  stall(shard: string): void {
    this.#stalled.add(shard)
    if (!this.isSome()) this.some.closeUnsafe()
  }

  flow(shard: string): void {
    if (this.#stalled.delete(shard)) this.some.openUnsafe()
  }
}
