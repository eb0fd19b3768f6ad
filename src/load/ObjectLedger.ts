/**
 * What is known of one object's log: what was sent to it, what the broker and the service said, what was read back.
 *
 * The log is followed by position, so each entry is read once. An append is forgotten when it and all before it are
 * settled: what stays is a number up to which all is well, and a digest of what was read, against which the complete
 * read at the end is held. So memory follows the appends under way, and not the length of the run.
 *
 * One that was sent again may have been stored first by either attempt: its place among its neighbours is then not
 * known, and its order is not checked. That it is there once is.
 */
import type { Entry } from "../cli/Client.ts"
import { addDigest } from "./digest.ts"
import type { Texts } from "./Texts.ts"
import type { ViolationKind } from "./Violation.ts"

/** Where an append ended up, by its event or by its entry. */
export interface Place {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
}

/** An append under way. Times are milliseconds of a clock that only goes forward. */
export interface Append {
  readonly object: ObjectLedger
  readonly number: number
  /** When the schedule wanted it sent. */
  readonly due: number
  attempts: number
  /** The broker's sequence number and when its acknowledgement, or the event, told that it is stored. */
  storedSeq: number | undefined
  storedAt: number | undefined
  /** By the event, and when that came. */
  event: Place | undefined
  answeredAt: number | undefined
  /** By the log. */
  entry: Place | undefined
}

/** What all objects of a run share. */
export interface LedgerContext {
  readonly texts: Texts
  /** Whether logs are read back: then an append is settled by its entry, else by its event. */
  readonly verify: boolean
  /** How long a stored append may be missing in a log that can be read. */
  readonly timeoutMillis: number
  readonly violated: (kind: ViolationKind, object: ObjectLedger, reason: string) => void
  readonly counters: { verified: number; foreign: number }
  /** Appends that are not settled, over all objects. */
  pending: number
}

const samePlace = (a: Place, b: Place): boolean =>
  a.position === b.position && a.seq === b.seq && a.timestamp === b.timestamp

export const showPlace = (place: Place): string =>
  `position ${place.position}, seq ${place.seq}, timestamp ${place.timestamp}`

/** Settled appends that the list may hold before it is cut. */
const slackMax = 1_024

export class ObjectLedger {
  readonly id: bigint
  readonly ordinal: number
  readonly #context: LedgerContext
  #sent = 0
  #read = 0
  /** Appends from number `#first` on; those before `#head` are settled. */
  #appends: Array<Append | undefined> = []
  #first = 1
  #head = 0
  /** The latest settled append that was sent once. */
  #latest: { readonly number: number; readonly place: Place } | undefined
  /** Read back, and their event has not come. */
  readonly #unanswered = new Map<number, Append>()
  readonly #sentAgain = new Set<number>()
  /** All entries up to this position were read; those from the base on by this run. */
  #base = 0
  #position = 0
  #digest = 0
  #readable = true
  #readableSince = 0
  /** Appends that are stored for sure and not settled by what settles them, and since when there are any. */
  #awaited = 0
  #awaitedSince: number | undefined

  constructor(id: bigint, ordinal: number, context: LedgerContext) {
    this.id = id
    this.ordinal = ordinal
    this.#context = context
  }

  get position(): number {
    return this.#position
  }
  get base(): number {
    return this.#base
  }
  get digest(): number {
    return this.#digest
  }
  get sent(): number {
    return this.#sent
  }
  /** Appends of this run that were read back. */
  get readBack(): number {
    return this.#read
  }
  /** Places of the list of appends, settled ones that are not cut off yet included. */
  get held(): number {
    return this.#appends.length
  }
  get pending(): number {
    return this.#appends.length - this.#head
  }
  wasSentAgain(number: number): boolean {
    return this.#sentAgain.has(number)
  }

  /** Entries up to here were there before the run. */
  startAt(position: number): void {
    this.#base = position
    this.#position = position
  }

  /** The next append, about to be sent. */
  next(due: number): Append {
    this.#sent += 1
    const append: Append = {
      object: this,
      number: this.#sent,
      due,
      attempts: 0,
      storedSeq: undefined,
      storedAt: undefined,
      event: undefined,
      answeredAt: undefined,
      entry: undefined,
    }
    this.#appends.push(append)
    this.#context.pending += 1
    return append
  }

  sentAgain(append: Append): void {
    if (append.attempts > 1) this.#sentAgain.add(append.number)
  }

  /** The broker acknowledged it. */
  stored(append: Append, seq: number, now: number): void {
    append.storedSeq = seq
    this.#isStored(append, now)
    const place = append.entry ?? append.event
    if (place !== undefined) this.#checkSeq(append, place)
    this.#settle()
  }

  /** Its event came: when it was due, for the first one. */
  answered(number: number, event: Place, now: number): number | undefined {
    const append = this.#find(number)
    if (append === undefined) {
      if (number > this.#sent) this.#violated("invented", `an event names append ${number}, ${this.#sent} were sent`)
      return undefined
    }
    if (append.event !== undefined) {
      if (!samePlace(append.event, event)) {
        this.#violated(
          "contradicted",
          `append ${number}: the repeated event says ${showPlace(event)}, the first said ${showPlace(append.event)}`,
        )
      }
      return undefined
    }
    this.#isStored(append, now)
    append.event = event
    append.answeredAt = now
    if (!this.#context.verify) this.#isDone(now)
    this.#checkSeq(append, event)
    if (append.entry !== undefined) this.#checkEvent(append, append.entry, event)
    else if (this.#context.verify && event.position <= this.#position) {
      this.#violated("contradicted", `append ${number}: its event says ${showPlace(event)}, and it is not there`)
    }
    this.#unanswered.delete(number)
    this.#settle()
    return append.due
  }

  /** An entry of the log, each once, by position. */
  read(entry: Entry, now: number): void {
    if (entry.position !== this.#position + 1) {
      const expected = this.#position + 1
      if (entry.position > expected) {
        return this.#violated("gap", `expected position ${expected}, got ${entry.position} (seq ${entry.seq})`)
      }
      return this.#violated("duplicated", `position ${entry.position} came again, with seq ${entry.seq}`)
    }
    this.#position = entry.position
    this.#digest = addDigest(this.#digest, entry)
    const name = this.#context.texts.parse(entry.log)
    if (name === undefined) {
      this.#context.counters.foreign += 1
      return
    }
    this.#own(name, entry, now)
  }

  /** A read that began at `startedAt` is complete: up to the end of the log, unless it was cut. */
  readTo(startedAt: number, cut: boolean): void {
    if (this.#awaited > 0 && !cut) this.#awaitedSince = startedAt
    if (!this.#readable) this.#readableSince = startedAt
    this.#readable = true
    for (let index = this.#head; index < this.#appends.length; index++) {
      const append = this.#appends[index]!
      if (append.entry !== undefined) continue
      const { answeredAt, event, number, storedAt } = append
      if (event !== undefined && answeredAt! < startedAt && (!cut || event.position <= this.#position)) {
        return this.#violated(
          "invisible",
          `append ${number} was answered (${showPlace(event)}), and a later read up to position ${this.#position} does not have it`,
        )
      }
      if (cut || storedAt === undefined) continue
      if (startedAt - Math.max(storedAt, this.#readableSince) > this.#context.timeoutMillis) {
        const seq = append.storedSeq === undefined ? "" : ` with seq ${append.storedSeq}`
        return this.#violated(
          "lost",
          `append ${number} was stored by the broker${seq}, and after ${this.#context.timeoutMillis / 1000} s it is not in the log, which ends at position ${this.#position}`,
        )
      }
    }
  }

  /** A read was not answered: from now on nothing counts as missing until the log can be read again. */
  unreadable(): void {
    this.#readable = false
  }

  /** Appends whose event is missing for longer than the time-out are not waited for any more; how many. */
  expire(now: number): number {
    const late = (append: Append) =>
      append.storedAt !== undefined && now - append.storedAt > this.#context.timeoutMillis
    let expired = 0
    for (const [number, append] of this.#unanswered) {
      if (!late(append)) break
      this.#unanswered.delete(number)
      expired += 1
    }
    return expired
  }

  /** Read back, and their event has not come. */
  get unanswered(): number {
    return this.#unanswered.size
  }

  /** Appends that are stored for sure, and to be read back (without that, to be answered). */
  get awaited(): number {
    return this.#awaited
  }

  /** Since when there are any, or since they were last looked for. */
  get awaitedSince(): number | undefined {
    return this.#awaitedSince
  }

  #find(number: number): Append | undefined {
    return this.#appends[number - this.#first] ?? this.#unanswered.get(number)
  }

  #own(name: { readonly object: number; readonly number: number }, entry: Entry, now: number): void {
    const { number } = name
    const { texts } = this.#context
    if (name.object !== this.ordinal || number > this.#sent || number < 1) {
      return this.#violated(
        "invented",
        `the entry at ${showPlace(entry)} names append ${number} of the ${name.object + 1}th object, which was not sent here`,
      )
    }
    const append = this.#appends[number - this.#first]
    if (append === undefined || append.entry !== undefined) {
      const first = append?.entry === undefined ? "" : ` and at ${showPlace(append.entry)}`
      return this.#violated("duplicated", `append ${number} is in the log at ${showPlace(entry)}${first}`)
    }
    const expected = texts.log(this.ordinal, number)
    if (entry.log !== expected) {
      return this.#violated("altered", `append ${number} at ${showPlace(entry)}: ${differenceOf(expected, entry.log)}`)
    }
    this.#isStored(append, now)
    append.entry = { position: entry.position, seq: entry.seq, timestamp: entry.timestamp }
    this.#isDone(now)
    this.#read += 1
    this.#context.counters.verified += 1
    this.#checkSeq(append, append.entry)
    if (append.event === undefined) this.#unanswered.set(number, append)
    else this.#checkEvent(append, append.entry, append.event)
    this.#settle()
  }

  #isStored(append: Append, now: number): void {
    if (append.storedAt !== undefined) return
    append.storedAt = now
    this.#awaited += 1
    this.#awaitedSince ??= now
  }

  #isDone(now: number): void {
    this.#awaited -= 1
    this.#awaitedSince = this.#awaited === 0 ? undefined : (this.#awaitedSince ?? now)
  }

  #checkSeq({ attempts, number, storedSeq }: Append, place: Place): void {
    if (attempts > 1 || storedSeq === undefined || storedSeq === place.seq) return
    this.#violated(
      "contradicted",
      `append ${number}: the broker stored it with seq ${storedSeq}, got ${showPlace(place)}`,
    )
  }

  #checkEvent({ number }: Append, entry: Place, event: Place): void {
    if (samePlace(entry, event)) return
    this.#violated(
      "contradicted",
      `append ${number}: its event says ${showPlace(event)}, its entry has ${showPlace(entry)}`,
    )
  }

  /** Forgets what is done from the head on, and checks that it is in sequence. */
  #settle(): void {
    for (; this.#head < this.#appends.length; this.#head++) {
      const append = this.#appends[this.#head]!
      const place = this.#context.verify ? append.entry : append.event
      if (place === undefined) break
      if (append.attempts === 1) this.#checkOrder(append.number, place)
      this.#appends[this.#head] = undefined
      this.#context.pending -= 1
    }
    if (this.#head <= slackMax || this.#head * 2 < this.#appends.length) return
    this.#appends = this.#appends.slice(this.#head)
    this.#first += this.#head
    this.#head = 0
  }

  #checkOrder(number: number, place: Place): void {
    const latest = this.#latest
    if (latest !== undefined) {
      // The stamp has nanoseconds; within one of the milliseconds that are shown, the sequence number decides.
      const difference = place.timestamp - latest.place.timestamp || place.seq - latest.place.seq
      if (difference <= 0) {
        this.#violated(
          "reordered",
          `append ${number} was sent after append ${latest.number}, and its stamp is before: ${showPlace(place)}, and ${showPlace(latest.place)}`,
        )
      }
    }
    this.#latest = { number, place }
  }

  #violated(kind: ViolationKind, reason: string): void {
    this.#context.violated(kind, this, reason)
  }
}

/** How two texts differ, without showing them. */
export const differenceOf = (expected: string, got: string): string => {
  let at = 0
  while (at < expected.length && at < got.length && expected.charCodeAt(at) === got.charCodeAt(at)) at++
  const unit = (text: string) =>
    at < text.length ? `U+${text.charCodeAt(at).toString(16).padStart(4, "0")}` : "the end"
  return `expected ${expected.length} characters, got ${got.length}; character ${at} should be ${unit(expected)} and is ${unit(got)}`
}
