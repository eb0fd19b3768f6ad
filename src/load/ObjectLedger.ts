/**
 * What is known of one object's log: what was sent to it, what the broker and the service said, what was read back.
 *
 * The log is followed by position, so each entry is read once. An append is forgotten when it and all before it are
 * settled: what stays is the number up to which all is well, and a digest of what was read, against which the complete
 * read at the end is held. So memory follows the appends under way, and not the length of the run.
 *
 * One that was sent again may have been stored first by either attempt: its place among its neighbours is then not
 * known, and its order is not checked. That it is there once is.
 */
import type { Entry } from "../contract/Event.ts"
import { type Append, AppendQueue, type Place, samePlace, showPlace } from "./Append.ts"
import { addDigest } from "./digest.ts"
import type { LedgerContext } from "./LedgerContext.ts"
import { differenceOf, type Name } from "./Texts.ts"
import type { ViolationKind } from "./Violation.ts"

export class ObjectLedger {
  readonly id: bigint
  readonly ordinal: number
  readonly #context: LedgerContext
  readonly #appends = new AppendQueue()
  /** Read back, and their event has not come. */
  readonly #unanswered = new Map<number, Append>()
  readonly #sentAgain = new Set<number>()
  #sent = 0
  #readBack = 0
  /** The latest settled append that was sent once. */
  #latest: { readonly number: number; readonly place: Place } | undefined
  /** All entries up to this position were read; those from the base on by this run. */
  #base = 0
  #position = 0
  #digest = 0
  #readable = true
  #readableSince = 0
  #lookedAt = Number.NEGATIVE_INFINITY
  /** Stored for sure, and not settled by what settles them. */
  #awaited = 0
  /** Answered, and not read back yet. */
  #ready = 0
  #readySince: number | undefined

  constructor(id: bigint, ordinal: number, context: LedgerContext) {
    this.id = id
    this.ordinal = ordinal
    this.#context = context
  }

  get sent(): number {
    return this.#sent
  }
  /** Appends of this run that were read back. */
  get readBack(): number {
    return this.#readBack
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
  get appends(): AppendQueue {
    return this.#appends
  }
  /** Appends that are stored for sure, and to be read back (without that, to be answered). */
  get awaited(): number {
    return this.#awaited
  }
  /** Answered and not read back yet: how many, and since when, or since they were last looked for. */
  get ready(): number {
    return this.#ready
  }
  get readySince(): number | undefined {
    return this.#readySince
  }
  /** Read back, and their event has not come. */
  get unanswered(): number {
    return this.#unanswered.size
  }
  /** When the last complete read began. */
  get lookedAt(): number {
    return this.#lookedAt
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
    this.#appends.add(append)
    this.#context.pending += 1
    return append
  }

  sending(append: Append): void {
    append.attempts += 1
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
    const append = this.#appends.get(number) ?? this.#unanswered.get(number)
    if (append === undefined) {
      if (number > this.#sent) this.#violated("invented", `an event names append ${number}, ${this.#sent} were sent`)
      return undefined
    }
    if (append.event !== undefined) {
      if (samePlace(append.event, event)) return undefined
      const first = showPlace(append.event)
      this.#violated("contradicted", `append ${number}: an event said ${first}, a repeated one ${showPlace(event)}`)
      return undefined
    }
    this.#isStored(append, now)
    append.event = event
    append.answeredAt = now
    this.#checkSeq(append, event)
    if (append.entry !== undefined) {
      this.#checkEvent(append, append.entry, event)
      this.#unanswered.delete(number)
    } else if (!this.#context.verify) this.#awaited -= 1
    else {
      this.#ready += 1
      this.#readySince ??= now
      if (event.position <= this.#position) {
        this.#violated("contradicted", `append ${number}: its event says ${showPlace(event)}, and it is not there`)
      }
    }
    this.#settle()
    return append.due
  }

  /** An entry of the log, each once, by position. */
  read(entry: Entry, now: number): void {
    const expected = this.#position + 1
    if (entry.position > expected) {
      return this.#violated("gap", `expected position ${expected}, got ${entry.position} (seq ${entry.seq})`)
    }
    if (entry.position < expected) {
      return this.#violated("duplicated", `position ${entry.position} came again, with seq ${entry.seq}`)
    }
    this.#position = entry.position
    this.#digest = addDigest(this.#digest, entry)
    const name = this.#context.texts.parse(entry.log)
    if (name === undefined) this.#context.counters.foreign += 1
    else this.#own(name, entry, now)
  }

  /** A read that began at `startedAt` is complete: up to the end of the log, unless it was cut. */
  readTo(startedAt: number, cut: boolean): void {
    if (!this.#readable) this.#readableSince = startedAt
    this.#readable = true
    this.#readySince = this.#ready === 0 ? undefined : startedAt
    if (!cut) this.#lookedAt = startedAt
    for (const append of this.#appends) {
      const { answeredAt, entry, event, number } = append
      if (entry !== undefined) continue
      if (event !== undefined && answeredAt! < startedAt && (!cut || event.position <= this.#position)) {
        const reason = `append ${number} was answered (${showPlace(event)}), and a later read up to position ${this.#position} does not have it`
        return this.#violated("invisible", reason)
      }
      if (!cut && this.#mustBeRead(append, startedAt)) {
        const seq = append.storedSeq === undefined ? "" : ` with seq ${append.storedSeq}`
        const { floor, timeoutMillis } = this.#context
        const since = floor === undefined ? `more than ${timeoutMillis / 1_000} s ago` : "the workers are done with it"
        const reason = `append ${number} was stored by the broker${seq}, ${since}, and it is not in the log, which ends at position ${this.#position}`
        return this.#violated("lost", reason)
      }
    }
  }

  /** A read was not answered: from now on nothing counts as missing until the log can be read again. */
  unreadable(): void {
    this.#readable = false
  }

  /** The first append whose event should have come: the broker had stored it when the floor was seen. */
  get missingEvent(): Append | undefined {
    const floor = this.#context.eventFloor?.seq ?? -1
    const [first] = this.#context.verify ? this.#unanswered.values() : this.#appends
    const seq = first?.entry?.seq ?? first?.storedSeq
    return seq !== undefined && seq <= floor ? first : undefined
  }

  /** When the first append was due whose event has not come. */
  get unansweredDue(): number {
    const [unanswered] = this.#unanswered.values()
    return Math.min(unanswered?.due ?? Number.POSITIVE_INFINITY, this.#appends.peek()?.due ?? Number.POSITIVE_INFINITY)
  }

  /** The event of an append is not waited for any more. */
  giveUpEvent(append: Append): void {
    if (this.#unanswered.delete(append.number) || append !== this.#appends.peek()) return
    this.#remove()
    this.#awaited -= 1
    this.#settle()
  }

  #mustBeRead({ storedAt, storedSeq }: Append, startedAt: number): boolean {
    const { floor, timeoutMillis } = this.#context
    if (storedAt === undefined) return false
    if (floor !== undefined) return storedSeq !== undefined && storedSeq <= floor.seq && floor.at < startedAt
    return startedAt - Math.max(storedAt, this.#readableSince) > timeoutMillis
  }

  #own({ number, object }: Name, entry: Entry, now: number): void {
    if (object !== this.ordinal || number > this.#sent || number < 1) {
      const reason = `the entry at ${showPlace(entry)} names append ${number} of object number ${object}, which was not sent here`
      return this.#violated("invented", reason)
    }
    const append = this.#appends.get(number)
    if (append === undefined || append.entry !== undefined) {
      const first = append?.entry === undefined ? "" : ` and at ${showPlace(append.entry)}`
      return this.#violated("duplicated", `append ${number} is in the log at ${showPlace(entry)}${first}`)
    }
    const expected = this.#context.texts.log(this.ordinal, number)
    if (entry.log !== expected) {
      return this.#violated("altered", `append ${number} at ${showPlace(entry)}: ${differenceOf(expected, entry.log)}`)
    }
    this.#isStored(append, now)
    append.entry = { position: entry.position, seq: entry.seq, timestamp: entry.timestamp }
    this.#awaited -= 1
    this.#readBack += 1
    this.#context.counters.verified += 1
    this.#checkSeq(append, append.entry)
    if (append.event === undefined) this.#unanswered.set(number, append)
    else {
      this.#ready -= 1
      this.#checkEvent(append, append.entry, append.event)
    }
    this.#settle()
  }

  #isStored(append: Append, now: number): void {
    if (append.storedAt !== undefined) return
    append.storedAt = now
    this.#awaited += 1
  }

  #checkSeq({ attempts, number, storedSeq }: Append, place: Place): void {
    if (attempts > 1 || storedSeq === undefined || storedSeq === place.seq) return
    const reason = `append ${number}: the broker stored it with seq ${storedSeq}, got ${showPlace(place)}`
    this.#violated("contradicted", reason)
  }

  #checkEvent({ number }: Append, entry: Place, event: Place): void {
    if (samePlace(entry, event)) return
    const reason = `append ${number}: its event says ${showPlace(event)}, its entry has ${showPlace(entry)}`
    this.#violated("contradicted", reason)
  }

  /** Forgets what is done from the first on, and checks that it is in sequence. */
  #settle(): void {
    for (let first = this.#appends.peek(); first !== undefined; first = this.#appends.peek()) {
      const place = this.#context.verify ? first.entry : first.event
      if (place === undefined) return
      if (first.attempts === 1) this.#checkOrder(first.number, place)
      this.#remove()
    }
  }

  #remove(): void {
    this.#appends.removeFirst()
    this.#context.pending -= 1
  }

  #checkOrder(number: number, place: Place): void {
    const latest = this.#latest
    this.#latest = { number, place }
    if (latest === undefined) return
    // The stamp has nanoseconds; within one of the milliseconds that are shown, the sequence number decides.
    const difference = place.timestamp - latest.place.timestamp || place.seq - latest.place.seq
    if (difference > 0) return
    const reason = `append ${number} (${showPlace(place)}) was sent after append ${latest.number} (${showPlace(latest.place)}), and its stamp is not later`
    this.#violated("reordered", reason)
  }

  #violated(kind: ViolationKind, reason: string): void {
    this.#context.violated(kind, this, reason)
  }
}
