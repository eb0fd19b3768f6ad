/**
 * The publishers and readers of a run: what they send, and what they may conclude from what they get back.
 *
 * A publisher sends one append after the other and waits for each confirmation. A reader follows the rule of the README:
 * the pages of one snapshot belong together, and the first one that is complete is the answer.
 */
import { Deferred, Effect, Latch } from "effect"
import type { ErrorCode } from "../../src/contract/ErrorCode.ts"
import { fromStored } from "../../src/contract/LogEntry.ts"
import type { SimulatedBroker, StoredEvent } from "./SimulatedBroker.ts"
import type { StoredMessage } from "./SimulatedConsumer.ts"
import type { EntryRow, SimulatedPostgres } from "./SimulatedPostgres.ts"
import type { Prng } from "./Prng.ts"
import type { World } from "./World.ts"

/** One append as the broker stored it, with what its publisher knows of it. */
export interface SentAppend {
  readonly stored: StoredMessage
  readonly objectId: bigint
  readonly text: string
  readonly messageId: string | undefined
  readonly requestId: string | undefined
  readonly replyTo: string | undefined
  /** The code with which it must be refused; `undefined` for what must be in the log. */
  readonly refusal: ErrorCode | undefined
}

interface AppendDraft extends Omit<SentAppend, "stored" | "requestId"> {
  readonly payload: (requestId: string) => string
  /** Its payload can carry no request id. */
  readonly anonymous: boolean
}

export interface ReadParameters {
  readonly objectId: bigint
  readonly order: "asc" | "desc" | "position"
  readonly limit?: number | undefined
  readonly after?: string | undefined
  /** The entry behind which it goes on, where `after` is given. */
  readonly afterEntry?: EntryRow | undefined
  readonly afterPosition?: number | undefined
  readonly from?: number | undefined
  readonly to?: number | undefined
}

export interface ReadResult {
  readonly entries: ReadonlyArray<EntryRow>
  readonly next: string | undefined
}

interface Page {
  readonly snapshot: string
  readonly page: number
  readonly last: boolean
  readonly next?: string
  readonly entries: ReadonlyArray<{
    readonly position: number
    readonly seq: number
    readonly timestamp: number
    readonly log: string
  }>
}

interface Appended {
  readonly type: "append"
  readonly status: "ok" | "error"
  readonly request_id: string
  readonly position: number
  readonly seq: number
}

type Answer =
  | Appended
  | (Page & { readonly type: "query"; readonly status: "ok" | "error"; readonly request_id: string })

interface Reading {
  readonly parameters: ReadParameters
  /** Positions that it has to show where its bounds allow them. */
  readonly required: ReadonlySet<number>
  /** The pages of each snapshot, by number. */
  readonly snapshots: Map<string, Map<number, Page>>
  readonly done: Deferred.Deferred<ReadResult>
}

/** What poisons the database: such a log is refused by it, not by the worker. */
export const isPoison = (log: string): boolean => log.includes("poison")

const millisOf = (timestamp: bigint): number => Number(timestamp / 1_000_000n)

export class Clients {
  readonly #broker: SimulatedBroker
  readonly #world: World
  readonly #prng: Prng
  readonly #shardOf: (id: bigint) => SimulatedPostgres
  readonly objects: ReadonlyArray<bigint>
  /** Longest log, in characters. */
  readonly #largest: number
  readonly sent: Array<SentAppend> = []
  /** Reads that must be refused, by request id. */
  readonly malformedReads = new Set<string>()
  /** Positions of each object that an event or a finished read has shown. */
  /** What is stored, by position. */
  readonly #rows = new Map<bigint, ReadonlyMap<number, EntryRow>>()
  readonly #shown = new Map<bigint, Set<number>>()
  readonly #readings = new Map<string, Reading>()
  readonly #bySeq = new Map<number, SentAppend>()
  readonly #byRequest = new Map<string, SentAppend>()
  #requests = 0
  /** Mostly reads of whole logs. */
  readonly #wholeReads: boolean
  readonly #closing = Latch.makeUnsafe(false)
  #messageIds: Array<AppendDraft> = []

  constructor(
    broker: SimulatedBroker,
    prng: Prng,
    objects: ReadonlyArray<bigint>,
    { largest, wholeReads }: { readonly largest: number; readonly wholeReads: boolean },
    shardOf: (id: bigint) => SimulatedPostgres,
  ) {
    this.#broker = broker
    this.#world = broker.world
    this.#prng = prng
    this.objects = objects
    this.#largest = largest
    this.#wholeReads = wholeReads
    this.#shardOf = shardOf
    for (const id of objects) this.#shown.set(id, new Set())
    broker.listeners.push((event) => this.#receive(event))
  }

  sentWith(seq: number): SentAppend | undefined {
    return this.#bySeq.get(seq)
  }

  /** Nobody begins anything new. */
  close(): void {
    this.#closing.openUnsafe()
  }

  /** Whether to go on after a pause. */
  #pause(millis: number): Effect.Effect<boolean> {
    return Effect.raceFirst(Effect.as(Effect.sleep(millis), true), Effect.as(this.#closing.await, false))
  }

  // --- Appends

  /** Publishes so many appends, `gapMillis` apart on average. */
  publisher(name: string, count: number, gapMillis: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      for (let index = 1; index <= count; index++) {
        if (gapMillis > 0 && !(yield* this.#pause(this.#prng.below(2 * gapMillis)))) return
        const draft = this.#draft(`${name} ${index}`)
        while (true) {
          const requestId = `a${++this.#requests}`
          const headers: Record<string, string> =
            draft.messageId === undefined ? {} : { "Nats-Msg-Id": draft.messageId }
          const confirmed = yield* this.#broker.publish(
            this.#broker.appends,
            draft.payload(requestId),
            headers,
            (stored) => this.#stored(draft, requestId, stored),
          )
          if (confirmed !== "unconfirmed" || this.#prng.chance(0.2)) break
          // Nobody knows whether it was stored. A publisher that wants it once sends an id.
          yield* Effect.sleep(this.#prng.below(500))
        }
      }
    })
  }

  /** Many small appends for one object at once. */
  flood(objectId: bigint, count: number): void {
    for (let index = 1; index <= count; index++) {
      const text = `flood ${index} of ${objectId}`
      const draft: AppendDraft = {
        objectId,
        text,
        messageId: undefined,
        replyTo: undefined,
        refusal: undefined,
        payload: (requestId) => `{"id":${objectId},"log":"${text}","request_id":"${requestId}"}`,
        anonymous: false,
      }
      const requestId = `a${++this.#requests}`
      this.#broker.store(this.#broker.appends, draft.payload(requestId), {}, (stored) =>
        this.#stored(draft, requestId, stored),
      )
    }
  }

  #stored(draft: AppendDraft, requestId: string, stored: StoredMessage): void {
    const sent: SentAppend = { ...draft, stored, requestId: draft.anonymous ? undefined : requestId }
    this.sent.push(sent)
    this.#bySeq.set(stored.seq, sent)
    if (!draft.anonymous) this.#byRequest.set(requestId, sent)
    if (draft.refusal !== undefined && draft.refusal !== "entry_rejected") this.#world.strike("malformed append")
  }

  #draft(name: string): AppendDraft {
    const prng = this.#prng
    const objectId = prng.pick(this.objects)
    if (this.#messageIds.length > 0 && prng.chance(0.08)) {
      // Sent again, at once or much later, by somebody who does not know that it is stored.
      return prng.pick(this.#messageIds)
    }
    const kind = prng.unit()
    let text = `${name} of ${objectId}`
    if (prng.chance(0.1)) text += prng.pick(["\u0000", "\ud800", "\udc00x", '"\\', "ß🦜"])
    if (prng.chance(this.#largest > 1_000 ? 0.8 : 0.1)) text += "x".repeat(prng.below(this.#largest))
    const replyTo = prng.chance(0.1) ? prng.pick(["_INBOX.nobody", "response.team"]) : undefined
    const messageId = prng.chance(0.25) ? `m ${name}` : undefined
    const fields = (requestId: string, log: unknown) =>
      `{"id":${objectId},"log":${JSON.stringify(log)},"request_id":"${requestId}"${replyTo === undefined ? "" : `,"reply_to":"${replyTo}"`}}`
    const draft = (
      refusal: ErrorCode | undefined,
      payload: (requestId: string) => string,
      anonymous = false,
    ): AppendDraft => ({ objectId, text, messageId, replyTo, refusal, payload, anonymous })
    if (kind < 0.04) {
      text += " poison"
      return draft("entry_rejected", (requestId) => fields(requestId, text))
    }
    if (kind < 0.055) return draft("invalid_message", (requestId) => fields(requestId, 7))
    if (kind < 0.07) return draft("invalid_json", () => `{"id":${objectId},"log":`, true)
    if (kind < 0.08) {
      return draft("log_too_large", (requestId) => fields(requestId, "y".repeat(this.#broker.maxPayload)))
    }
    const valid = draft(undefined, (requestId) => fields(requestId, text))
    if (messageId !== undefined) this.#messageIds.push(valid)
    return valid
  }

  // --- Reads

  /** Reads now and then, so many times. */
  reader(count: number, gapMillis: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      for (let index = 0; index < count; index++) {
        if (!(yield* this.#pause(this.#prng.below(2 * gapMillis + 1)))) return
        yield* this.#someRead()
      }
    })
  }

  #someRead(): Effect.Effect<void> {
    const prng = this.#prng
    const objectId = prng.pick(this.objects)
    const kind = prng.unit()
    if (this.#wholeReads && kind < 0.7) return Effect.asVoid(this.read({ objectId, order: prng.pick(["asc", "desc"]) }))
    if (kind < 0.03) return this.#malformedRead()
    if (kind < 0.3) return Effect.asVoid(this.read({ objectId, order: "asc" }))
    if (kind < 0.45) return Effect.asVoid(this.read({ objectId, order: "desc" }))
    if (kind < 0.55) {
      const now = Math.floor(this.#world.now()) + millisOf(1_763_922_300_000_000_000n)
      const from = now - prng.below(60_000)
      const to = from + prng.below(60_000)
      return Effect.asVoid(this.read({ objectId, order: prng.pick(["asc", "desc"]), from, to }))
    }
    if (kind < 0.7) {
      return Effect.asVoid(
        this.follow({ objectId, order: "position", afterPosition: prng.below(5), limit: this.#someLimit(objectId) }),
      )
    }
    return Effect.asVoid(this.follow({ objectId, order: prng.pick(["asc", "desc"]), limit: this.#someLimit(objectId) }))
  }

  /** Some entries, so that a log takes a few reads, however long it is. */
  #someLimit(objectId: bigint): number {
    return this.#prng.between(1, 9) + Math.floor(this.#shown.get(objectId)!.size / 6)
  }

  #malformedRead(): Effect.Effect<void> {
    const requestId = `q${++this.#requests}`
    const payload = `{"id":${this.#prng.pick(this.objects)},"limit":0,"request_id":"${requestId}"}`
    return Effect.asVoid(
      this.#broker.publish(this.#broker.queries, payload, {}, () => {
        this.malformedReads.add(requestId)
        this.#world.strike("malformed read")
      }),
    )
  }

  /** A read and those that go on where its limit cut it short. */
  follow(parameters: ReadParameters): Effect.Effect<ReadonlyArray<EntryRow>> {
    return Effect.gen({ self: this }, function* () {
      const all: Array<EntryRow> = []
      let { after, afterEntry } = parameters
      let { afterPosition } = parameters
      while (true) {
        // A log that grows by thousands meanwhile takes a few reads too.
        const limit = parameters.limit === undefined ? undefined : Math.max(parameters.limit, all.length >> 3)
        const result = yield* this.read({ ...parameters, after, afterEntry, afterPosition, limit })
        all.push(...result.entries)
        if (result.next === undefined) return all
        after = result.next
        afterEntry = result.entries.at(-1)
        afterPosition = undefined
        if (all.length > 100_000) throw new Error("pages without end")
      }
    })
  }

  /** One read; waits for its answer, and sends it again if it was not stored. */
  read(parameters: ReadParameters): Effect.Effect<ReadResult> {
    return Effect.gen({ self: this }, function* () {
      const { after, afterPosition, from, limit, objectId, order, to } = parameters
      while (true) {
        const requestId = `q${++this.#requests}`
        const fields = [`"id":${objectId}`, `"request_id":"${requestId}"`]
        if (order !== "position") fields.push(`"order":"${order}"`)
        if (limit !== undefined) fields.push(`"limit":${limit}`)
        if (after !== undefined) fields.push(`"after":"${after}"`)
        if (afterPosition !== undefined) fields.push(`"after_position":${afterPosition}`)
        if (from !== undefined) fields.push(`"from":${from}`)
        if (to !== undefined) fields.push(`"to":${to}`)
        const required = new Set(this.#shown.get(objectId))
        const done = yield* Deferred.make<ReadResult>()
        this.#readings.set(requestId, { parameters, required, snapshots: new Map(), done })
        const confirmed = yield* this.#broker.publish(this.#broker.queries, `{${fields.join(",")}}`)
        if (confirmed !== "unconfirmed") return yield* Deferred.await(done)
      }
    })
  }

  // --- Answers

  #receive({ payload, subject }: StoredEvent): void {
    if (subject !== "response") return
    const event = JSON.parse(payload) as Answer
    if (event.status !== "ok") {
      // Those that may be refused are not in `#readings`.
      if (this.#readings.delete(event.request_id))
        this.#world.violation(`read ${event.request_id} was refused: ${payload}`)
      return
    }
    if (event.type === "append") this.#appended(event)
    else this.#page(event.request_id, event)
  }

  /** An entry that an event names is there at that moment, and in every read from now on. */
  #appended({ position, request_id: requestId, seq }: Appended): void {
    const sent = this.#byRequest.get(requestId)
    if (sent === undefined) return this.#world.violation(`an event answers ${requestId}, which nobody stored`)
    const { objectId } = sent
    const row = this.#rowAt(objectId, position)
    if (row === undefined || Number(row.seq) !== seq) {
      this.#world.violation(`the event of logs #${sent.stored.seq} names position ${position}, where it is not stored`)
      return
    }
    this.#shown.get(objectId)!.add(position)
  }

  #rowAt(objectId: bigint, position: number): EntryRow | undefined {
    const rows = this.#shardOf(objectId).entriesOf(BigInt.asIntN(64, objectId))
    let index = this.#rows.get(objectId)
    if (index?.size !== rows.length) {
      // The first one of each position, as a search would find it.
      index = new Map(rows.toReversed().map((row) => [Number(row.position), row]))
      this.#rows.set(objectId, index)
    }
    return index.get(position)
  }

  #page(requestId: string, page: Page): void {
    const reading = this.#readings.get(requestId)
    if (reading === undefined) return
    const pages = reading.snapshots.get(page.snapshot) ?? new Map<number, Page>()
    reading.snapshots.set(page.snapshot, pages)
    pages.set(page.page, page)
    const end = Array.from(pages.values()).find((each) => each.last)
    if (end === undefined || pages.size <= end.page) return
    this.#readings.delete(requestId)
    const { objectId } = reading.parameters
    const entries: Array<EntryRow> = []
    for (const { log, position, seq, timestamp } of Array.from(
      { length: pages.size },
      (_, at) => pages.get(at)?.entries ?? [],
    ).flat()) {
      const row = this.#rowAt(objectId, position)
      if (
        row === undefined ||
        Number(row.seq) !== seq ||
        millisOf(row.timestamp) !== timestamp ||
        fromStored(row.log, row.escaped) !== log
      ) {
        this.#world.violation(`read ${requestId} shows at position ${position} what is not stored there`)
        continue
      }
      entries.push(row)
    }
    this.#checkRead(requestId, reading, entries, end.next)
    for (const row of entries) this.#shown.get(objectId)!.add(Number(row.position))
    Deferred.doneUnsafe(reading.done, Effect.succeed({ entries, next: end.next }))
  }

  /** A read is sorted, keeps its bounds, and has everything that was shown before it was sent. */
  #checkRead(requestId: string, reading: Reading, entries: ReadonlyArray<EntryRow>, next: string | undefined): void {
    const { parameters, required } = reading
    const { afterEntry, afterPosition, from, limit, objectId, order, to } = parameters
    const violation = (text: string) => this.#world.violation(`read ${requestId} of ${objectId} (${order}) ${text}`)
    const before = (a: EntryRow, b: EntryRow) =>
      order === "position" ? a.position < b.position : order === "asc" ? isBefore(a, b) : isBefore(b, a)
    const last = entries.at(-1)
    for (let i = 1; i < entries.length; i++) {
      if (!before(entries[i - 1]!, entries[i]!)) violation(`is not in order at entry ${i}`)
    }
    if (limit !== undefined && entries.length > limit) violation(`has ${entries.length} entries, more than its limit`)
    const inBounds = (row: EntryRow) =>
      (afterEntry === undefined || before(afterEntry, row)) &&
      (afterPosition === undefined || Number(row.position) > afterPosition) &&
      (from === undefined || millisOf(row.timestamp) >= from) &&
      (to === undefined || millisOf(row.timestamp) < to)
    for (const row of entries) if (!inBounds(row)) violation(`shows position ${row.position}, out of its bounds`)
    const shown = new Set(entries.map((row) => Number(row.position)))
    for (const position of required) {
      const row = this.#rowAt(objectId, position)
      if (row === undefined) {
        violation(`no longer finds position ${position}`)
        continue
      }
      const wanted = inBounds(row) && (next === undefined || last === undefined || !before(last, row))
      if (wanted && !shown.has(position)) violation(`lacks position ${position}, which was shown before it was sent`)
    }
    const whole = afterEntry === undefined && from === undefined && to === undefined && next === undefined
    if (whole || order === "position") {
      const first = afterPosition ?? (order === "position" ? Number(afterEntry?.position ?? 0n) : 0)
      // One snapshot: everything up to some position, which no read has without all below.
      for (let position = first + 1; position <= first + shown.size; position++) {
        if (!shown.has(position)) violation(`lacks position ${position} of its snapshot`)
      }
    }
  }
}

export const isBefore = (a: EntryRow, b: EntryRow): boolean =>
  a.timestamp === b.timestamp ? a.seq < b.seq : a.timestamp < b.timestamp
