/** An append under way, and the appends of one object that are. */

/** Where an append ended up, by its event or by its entry. */
export interface Place {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
}

/** What an append's sender and its broker tell the object that it is for. */
interface AppendTarget {
  readonly id: bigint
  /** Counts the objects of a run from 0. */
  readonly ordinal: number
  sending(append: Append): void
  stored(append: Append, seq: number, now: number): void
  /** Its event is not waited for any more. */
  giveUpEvent(append: Append): void
}

/** Times are milliseconds of a clock that only goes forward. */
export interface Append {
  readonly object: AppendTarget
  /** Counts 1, 2, 3 … for each object. */
  readonly number: number
  /** When the schedule wanted it sent. */
  readonly due: number
  attempts: number
  /** The broker's sequence number, by its acknowledgement, and when that or anything else told that it is stored. */
  storedSeq: number | undefined
  storedAt: number | undefined
  /** By the event. */
  event: Place | undefined
  answeredAt: number | undefined
  /** By the log. */
  entry: Place | undefined
}

export const samePlace = (a: Place, b: Place): boolean =>
  a.position === b.position && a.seq === b.seq && a.timestamp === b.timestamp

export const showPlace = (place: Place): string =>
  `position ${place.position}, seq ${place.seq}, timestamp ${place.timestamp}`

/** Places of settled appends that are kept before the list is cut. */
const slackMax = 1_024

/** Consecutive numbers; the first ones leave when they are settled. */
export class AppendQueue {
  /** From number `#first` on; those before `#head` have left. */
  #appends: Array<Append | undefined> = []
  #first = 1
  #head = 0

  get size(): number {
    return this.#appends.length - this.#head
  }

  /** What memory is held for. */
  get held(): number {
    return this.#appends.length
  }

  add(append: Append): void {
    this.#appends.push(append)
  }

  get(number: number): Append | undefined {
    return this.#appends[number - this.#first]
  }

  peek(): Append | undefined {
    return this.#appends[this.#head]
  }

  removeFirst(): void {
    this.#appends[this.#head++] = undefined
    if (this.#head <= slackMax || this.#head * 2 < this.#appends.length) return
    this.#appends = this.#appends.slice(this.#head)
    this.#first += this.#head
    this.#head = 0
  }

  *[Symbol.iterator](): Iterator<Append> {
    for (let index = this.#head; index < this.#appends.length; index++) yield this.#appends[index]!
  }
}
