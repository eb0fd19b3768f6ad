/**
 * What is known of every append, from three independent sources: the publisher (what the broker confirmed), the intake
 * stream (what the broker stored, with its stamp) and the response stream (what the service answered).
 */

/** One stored copy of an append; a publisher that tries again may cause several. */
interface Copy {
  readonly seq: number
  readonly nanos: bigint
}

/** What an event said. */
export interface Answer {
  readonly id: string
  readonly position: number
  readonly seq: number
  readonly timestamp: number
}

export interface Append {
  readonly object: ObjectRecord
  /** 0, 1, 2 … within its object, in the order in which the publisher sent them. */
  readonly n: number
  /** With a `Nats-Msg-Id`, and therefore repeated until it is confirmed. */
  readonly named: boolean
  /** Not a valid request: to be answered with an error, and kept as a dead letter. */
  readonly bad: boolean
  /** Appends with the same number were sent side by side, in sequence on one connection. */
  readonly window: number
  readonly sentAt: number
  attempts: number
  /** When the broker confirmed it, and under which number; `undefined` until then, or for ever where that is unknown. */
  confirmedAt: number | undefined
  confirmedSeq: number | undefined
  /** When its first event was seen. */
  answeredAt: number | undefined
  readonly copies: Array<Copy>
  /** Its numbers in the stream of what was parked. */
  readonly parked: Array<number>
  /** Each different event. */
  readonly answers: Array<Answer>
  errors: number
}

export interface ObjectRecord {
  readonly index: number
  readonly id: bigint
  readonly shard: number
  readonly appends: Array<Append>
}

/** The text of an append: its place, and letters whose number depends on it, so that a checker can tell every character. */
export const textOf = (object: number, n: number): string => {
  const mixed = Math.imul(object * 7919 + n + 1, 0x9e3779b1) >>> 0
  const tail = mixed % 5 === 0 ? " \u0000 \ud800 ✓" : ""
  const length = mixed % 2_003 === 0 ? 50_000 : mixed % 300
  return `${object}.${n} ${"abcdefghij"[mixed % 10]!.repeat(length)}${tail}`
}

/** The object and number that a text or a request id begins with. */
export const placeOf = (text: string): { readonly object: number; readonly n: number } | undefined => {
  const match = /^(\d+)\.(\d+)(?: |$)/.exec(text)
  return match === null ? undefined : { object: Number(match[1]), n: Number(match[2]) }
}

export class Ledger {
  readonly objects: ReadonlyArray<ObjectRecord>
  /** Confirmed and not answered, of each shard, the longest confirmed first. */
  readonly #open: ReadonlyArray<Set<Append>>
  /** Delays from confirmation to event in milliseconds, of each shard, with the time of the event. */
  readonly delays: ReadonlyArray<Array<{ readonly object: number; readonly at: number; readonly millis: number }>>
  confirmed = 0
  unknown = 0
  answered = 0
  repeatedEvents = 0
  longestDelayMillis = 0
  lastAnswerAt = Date.now()
  /** Messages of the intake stream, and of those that are none of ours. */
  stored = 0
  foreign = 0

  constructor(ids: ReadonlyArray<bigint>, shardOf: (id: bigint) => number, shards: number) {
    this.objects = ids.map((id, index) => ({ index, id, shard: shardOf(id), appends: [] }))
    this.#open = Array.from({ length: shards }, () => new Set())
    this.delays = Array.from({ length: shards }, () => [])
  }

  find(place: { readonly object: number; readonly n: number } | undefined): Append | undefined {
    return place === undefined ? undefined : this.objects[place.object]?.appends[place.n]
  }

  confirm(append: Append, seq: number): void {
    append.confirmedAt = Date.now()
    append.confirmedSeq = seq
    this.confirmed++
    if (append.answeredAt === undefined) this.#open[append.object.shard]!.add(append)
    else this.#delay(append, 0)
  }

  giveUp(): void {
    this.unknown++
  }

  /** An event, good or bad; `answer` is what a good one said. */
  answer(append: Append, answer: Answer | undefined): void {
    this.lastAnswerAt = Date.now()
    if (answer === undefined) append.errors++
    else {
      const isKnown = append.answers.some(
        (known) => known.id === answer.id && known.position === answer.position && known.seq === answer.seq,
      )
      if (isKnown) this.repeatedEvents++
      else append.answers.push(answer)
    }
    if (append.answeredAt !== undefined) return
    append.answeredAt = this.lastAnswerAt
    this.answered++
    this.#open[append.object.shard]!.delete(append)
    if (append.confirmedAt !== undefined) this.#delay(append, append.answeredAt - append.confirmedAt)
  }

  #delay(append: Append, millis: number): void {
    this.longestDelayMillis = Math.max(this.longestDelayMillis, millis)
    this.delays[append.object.shard]!.push({ object: append.object.index, at: Date.now(), millis })
  }

  /** Confirmed and not answered. */
  get waiting(): number {
    return this.#open.reduce((sum, open) => sum + open.size, 0)
  }

  /** When the append of that shard was confirmed that has waited longest; `undefined` if none waits. */
  waitingSince(shard: number): number | undefined {
    for (const append of this.#open[shard]!) return append.confirmedAt
    return undefined
  }

  /** Some that wait, to tell about. */
  waitingExamples(count: number): ReadonlyArray<Append> {
    return this.#open.flatMap((open) => [...open].slice(0, count)).slice(0, count)
  }
}
