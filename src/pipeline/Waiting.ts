/** Appends that wait in a lane: a queue bounded in entries and in the memory that its shard has of the worker's. */
import { Latch } from "effect"
import type { Delivery } from "../broker/Broker.ts"
import type { NewEntry } from "../contract/LogEntry.ts"
import { ownText } from "../contract/ownText.ts"
import type { Addressed } from "../contract/Request.ts"
import * as limits from "./limits.ts"

/** Where an append comes from: `parked` is what waited in the parked stream: for its shard, or to be tried again. */
export type Source = "intake" | "parked"

/** One append on its way through a lane, and whom to tell of it. */
export class Work implements Addressed {
  readonly source: Source
  readonly delivery: Delivery
  entry: NewEntry
  requestId: string | undefined
  replyTo: string | undefined
  /** What it takes while it is held, in bytes. */
  readonly weight: number
  #isDetached = false

  constructor(source: Source, delivery: Delivery, entry: NewEntry, { replyTo, requestId }: Addressed) {
    this.source = source
    this.delivery = delivery
    this.entry = entry
    this.requestId = requestId
    this.replyTo = replyTo
    this.weight = limits.appendBytes + delivery.heldBytes + 2 * entry.log.length
  }

  /** It is going to be kept for long, see `Delivery.detach`. */
  detach(): void {
    if (this.#isDetached) return
    this.#isDetached = true
    const own = (text: string | undefined) => (text === undefined ? undefined : ownText(text))
    this.delivery.detach()
    this.entry = { ...this.entry, log: ownText(this.entry.log), messageId: own(this.entry.messageId) }
    this.requestId = own(this.requestId)
    this.replyTo = own(this.replyTo)
  }
}

/** Works that are being brought into a lane; those from `next` on are not in it. */
export interface Offered {
  readonly works: ReadonlyArray<Work>
  next: number
}

/** What the works of all queues of a lane are counted by, until they are settled. */
export interface Budget {
  /** Whether there is room for so many bytes; then they are taken. */
  readonly tryAdd: (bytes: number) => boolean
}

export class Waiting {
  #entriesMax: number
  readonly #budget: Budget
  #works: Array<Work> = []
  /** Closed when something found no room; open again when there may be some. */
  readonly space = Latch.makeUnsafe(true)

  constructor(entriesMax: number, budget: Budget) {
    this.#entriesMax = entriesMax
    this.#budget = budget
  }

  get works(): ReadonlyArray<Work> {
    return this.#works
  }

  get isEmpty(): boolean {
    return this.#works.length === 0
  }

  get entriesMax(): number {
    return this.#entriesMax
  }

  /** More room, or less; what is there stays. */
  set entriesMax(entriesMax: number) {
    this.#entriesMax = entriesMax
    if (this.#works.length < entriesMax) this.space.openUnsafe()
  }

  /** Takes in what there is room for; whether that was all. */
  enqueue(offered: Offered): boolean {
    const { works } = offered
    while (offered.next < works.length) {
      const work = works[offered.next]!
      if (this.#works.length >= this.#entriesMax || !this.#budget.tryAdd(work.weight)) {
        this.space.closeUnsafe()
        return false
      }
      this.#works.push(work)
      offered.next++
    }
    return true
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
    if (count > 0) this.space.openUnsafe()
    return taken
  }

  takeAll(): ReadonlyArray<Work> {
    return this.take(Infinity, Infinity)
  }
}
