/** The only source of chance in a simulation: everything that one seed decides is drawn from here. */

/** A small fast generator (sfc32) with streams that do not disturb each other. */
export class Prng {
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor(seed: number, stream = 0) {
    this.#a = seed | 0
    this.#b = Math.imul(stream, 0x9e3779b1) | 0
    this.#c = 0x2545f491
    for (let i = 0; i < 15; i++) this.word()
  }

  /** 32 bits, as a signed number. */
  word(): number {
    const mixed = (((this.#a + this.#b) | 0) + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + mixed) | 0
    return mixed
  }

  /** From 0 to below 1. */
  unit(): number {
    return (this.word() >>> 0) / 2 ** 32
  }

  /** An integer from 0 to below `bound`. */
  below(bound: number): number {
    return Math.floor(this.unit() * bound)
  }

  /** An integer from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1)
  }

  /** True once in `1 / probability` times. Draws nothing for 0, so that a fault that is off does not move the others. */
  chance(probability: number): boolean {
    return probability > 0 && this.unit() < probability
  }

  pick<A>(all: ReadonlyArray<A>): A {
    return all[this.below(all.length)]!
  }

  shuffle<A>(all: Array<A>): void {
    for (let i = all.length - 1; i > 0; i--) {
      const j = this.below(i + 1)
      const held = all[i]!
      all[i] = all[j]!
      all[j] = held
    }
  }
}
