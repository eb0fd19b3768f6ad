/** Appends that wait in a lane: a queue bounded in entries and in characters. */
import { Latch } from "effect"
import type { Delivery } from "../broker/Broker.ts"
import type { NewEntry } from "../domain/LogEntry.ts"
import type { Addressed } from "../domain/Protocol.ts"

/** One append on its way through a lane, and whom to tell of it. */
export interface Work extends Addressed {
  readonly delivery: Delivery
  readonly entry: NewEntry
}

/** Works that are being brought into a lane; those from `next` on are not in it. */
export interface Offered {
  readonly works: ReadonlyArray<Work>
  next: number
}

export class Waiting {
  #entriesMax: number
  readonly #charactersMax: number
  #works: Array<Work> = []
  #characters = 0
  /** Open while there is room. */
  readonly space = Latch.makeUnsafe(true)

  constructor(entriesMax: number, charactersMax: number) {
    this.#entriesMax = entriesMax
    this.#charactersMax = charactersMax
  }

  get works(): ReadonlyArray<Work> {
    return this.#works
  }

  get isEmpty(): boolean {
    return this.#works.length === 0
  }

  get #isFull(): boolean {
    return this.#works.length >= this.#entriesMax || this.#characters >= this.#charactersMax
  }

  get entriesMax(): number {
    return this.#entriesMax
  }

  /** More room, or less; what is there stays. */
  set entriesMax(entriesMax: number) {
    this.#entriesMax = entriesMax
    if (!this.#isFull) this.space.openUnsafe()
  }

  /** Takes in what there is room for; whether that was all. */
  enqueue(offered: Offered): boolean {
    const { works } = offered
    while (offered.next < works.length && !this.#isFull) {
      const work = works[offered.next++]!
      this.#works.push(work)
      this.#characters += work.entry.log.length
    }
    if (this.#isFull) this.space.closeUnsafe()
    return offered.next === works.length
  }

  /** Removes the first ones: so many, or up to the one that reaches this many characters. */
  take(entriesMax: number, charactersMax: number): ReadonlyArray<Work> {
    let characters = 0
    let count = 0
    while (count < this.#works.length && count < entriesMax && characters < charactersMax) {
      characters += this.#works[count++]!.entry.log.length
    }
    const taken = count === this.#works.length ? this.#works : this.#works.slice(0, count)
    this.#works = count === this.#works.length ? [] : this.#works.slice(count)
    this.#characters -= characters
    if (!this.#isFull) this.space.openUnsafe()
    return taken
  }

  takeAll(): ReadonlyArray<Work> {
    return this.take(Infinity, Infinity)
  }
}
