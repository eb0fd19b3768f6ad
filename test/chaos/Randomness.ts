/** Random choices that a seed decides, so that a run's plan of faults can be had again. */

export class Randomness {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** 0 ≤ x < 1, by mulberry32: 32 bits of state are plenty for some thousand choices. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number, both ends included. */
  between(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1))
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  pick<A>(all: ReadonlyArray<A>): A {
    return all[Math.floor(this.next() * all.length)]!
  }

  shuffled<A>(all: ReadonlyArray<A>): Array<A> {
    const result = [...all]
    for (let i = result.length - 1; i > 0; i--) {
      const j = this.between(0, i)
      const moved = result[i]!
      result[i] = result[j]!
      result[j] = moved
    }
    return result
  }
}
