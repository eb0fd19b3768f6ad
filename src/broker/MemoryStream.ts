/** A stream of the broker in memory with its durable consumer, and its deliveries. Time is Effect's clock. */
import { Clock, Effect } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import { decodeText } from "../contract/Request.ts"
import type { MessageTrace } from "../trace/MessageTrace.ts"
import type { ConsumerState, Delivery } from "./Broker.ts"
import { ackWaitMillis } from "./intakeLimits.ts"

/** A message as it was stored. */
export interface StoredMessage {
  readonly subject: string
  readonly seq: number
  readonly timestamp: bigint
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
}

/** Deliveries in one chunk at most. */
const pullMax = 1_000

/** A message in one stream: what it presents itself as, and how its outcome's ids begin. */
interface Stored {
  readonly message: StoredMessage
  readonly outcomePrefix: string
}

/** One stream with its durable consumer. */
export class MemoryStream {
  readonly #timers: Timers
  readonly #ackPendingMax: number
  readonly unsettled = new Set<Stored>()
  /** Delivered, or handed back, and not acknowledged. */
  readonly underWay = new Set<Stored>()
  /** Not delivered yet, from `#next` on. */
  #fresh: Array<MemoryDelivery> = []
  #next = 0
  /** To be delivered again. */
  #again: Array<MemoryDelivery> = []
  /** Workers that wait. */
  readonly #takers = new Set<() => void>()
  #lastSeq = 0
  #delivered = 0

  constructor(timers: Timers, ackPendingMax: number) {
    this.#timers = timers
    this.#ackPendingMax = ackPendingMax
  }

  store(stored: Stored): void {
    this.unsettled.add(stored)
    this.#lastSeq = stored.message.seq
    this.offer(new MemoryDelivery(this, stored, 1))
  }

  state(): ConsumerState {
    const pending = this.#fresh.length - this.#next
    return {
      pending,
      ackPending: this.unsettled.size - pending,
      ackFloor: Array.from(this.unsettled).reduce(
        (floor, { message }) => Math.min(floor, message.seq - 1),
        this.#lastSeq,
      ),
      delivered: this.#delivered,
      pulls: this.#takers.size,
      buffered: 0,
      taken: this.#delivered,
    }
  }

  offer(delivery: MemoryDelivery): void {
    if (delivery.deliveryCount === 1) this.#fresh.push(delivery)
    else this.#again.push(delivery)
    this.#wake()
  }

  settle(stored: Stored): void {
    this.unsettled.delete(stored)
    this.underWay.delete(stored)
    this.#wake()
  }

  later(millis: number, run: () => void): void {
    this.#timers.later(millis, run)
  }

  get #isThere(): boolean {
    return this.#again.length > 0 || (this.underWay.size < this.#ackPendingMax && this.#next < this.#fresh.length)
  }

  /** Waits for a message, and then takes what is there: one who is interrupted in between has taken nothing. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.suspend(() => {
    // What was under way already may come again; beyond the bound nothing new does.
    const taken = this.#again.splice(0, pullMax)
    while (taken.length < pullMax && this.underWay.size < this.#ackPendingMax && this.#next < this.#fresh.length) {
      const delivery = this.#fresh[this.#next++]!
      this.underWay.add(delivery.stored)
      taken.push(delivery)
    }
    if (!isNonEmpty(taken)) return Effect.andThen(this.#arrival, this.take)
    if (this.#next === this.#fresh.length) {
      this.#fresh = []
      this.#next = 0
    }
    this.#delivered += taken.length
    for (const delivery of taken) delivery.expireLater()
    return Effect.succeed(taken)
  })

  readonly #arrival: Effect.Effect<void> = Effect.callback((resume) => {
    // What came since the look: the scheduler may let others run in between.
    if (this.#isThere) return resume(Effect.void)
    const taker = () => {
      this.#takers.delete(taker)
      resume(Effect.void)
    }
    this.#takers.add(taker)
    return Effect.sync(() => this.#takers.delete(taker))
  })

  #wake(): void {
    // All of them: the one who comes first may be interrupted before it takes.
    for (const taker of Array.from(this.#takers)) taker()
  }
}

/** Runs things after a delay of the clock; those that are due at the same time cost one fiber. */
export class Timers {
  readonly #clock: Clock.Clock
  readonly #fork: (effect: Effect.Effect<void>) => void
  readonly #due = new Map<number, Array<() => void>>()

  constructor(clock: Clock.Clock, fork: (effect: Effect.Effect<void>) => void) {
    this.#clock = clock
    this.#fork = fork
  }

  later(millis: number, run: () => void): void {
    const at = this.#clock.currentTimeMillisUnsafe() + millis
    const same = this.#due.get(at)
    if (same !== undefined) return void same.push(run)
    const all = [run]
    this.#due.set(at, all)
    this.#fork(
      Effect.delay(
        Effect.sync(() => {
          this.#due.delete(at)
          for (const each of all) each()
        }),
        millis,
      ),
    )
  }
}

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

export class MemoryDelivery implements Delivery {
  readonly stored: Stored
  readonly deliveryCount: number
  trace: MessageTrace | undefined = undefined
  readonly #stream: MemoryStream
  #settled = false
  /** Counts the signs of life; a wait that another sign has overtaken does nothing. */
  #signs = 0

  constructor(stream: MemoryStream, stored: Stored, deliveryCount: number) {
    this.#stream = stream
    this.stored = stored
    this.deliveryCount = deliveryCount
  }

  get subject(): string {
    return this.stored.message.subject
  }

  get seq(): number {
    return this.stored.message.seq
  }

  get timestamp(): bigint {
    return this.stored.message.timestamp
  }

  get payload(): Uint8Array {
    return this.stored.message.payload
  }

  get text(): string | undefined {
    return decodeText(this.payload)
  }

  get heldBytes(): number {
    return 2 * this.payload.byteLength
  }

  detach(): void {}

  get outcomePrefix(): string {
    return this.stored.outcomePrefix
  }

  header(name: string): string | undefined {
    return this.stored.message.headers[name]
  }

  ack(): void {
    if (this.#settled) return
    this.#settled = true
    this.trace?.settled("ack")
    this.#stream.settle(this.stored)
  }

  retry(delayMillis: number): void {
    if (this.#settled) return
    this.#settled = true
    this.trace?.settled("retry")
    if (delayMillis === 0) this.#again()
    else this.#stream.later(delayMillis, () => this.#again())
  }

  working(): void {
    if (!this.#settled) this.expireLater()
  }

  /** Delivered again after `ack_wait` without a sign. */
  expireLater(): void {
    const sign = ++this.#signs
    this.#stream.later(ackWaitMillis, () => {
      if (this.#settled || sign !== this.#signs) return
      this.#settled = true
      this.#again()
    })
  }

  #again(): void {
    if (this.#stream.unsettled.has(this.stored)) {
      this.#stream.offer(new MemoryDelivery(this.#stream, this.stored, this.deliveryCount + 1))
    }
  }
}

/** Stamps what is published, as a stream does. */
export class Stamper {
  readonly #subject: string
  readonly #clock: Clock.Clock
  #lastSeq = 0
  #lastTimestamp = 0n

  constructor(subject: string, clock: Clock.Clock) {
    this.#subject = subject
    this.#clock = clock
  }

  stamp(payload: string | Uint8Array, headers: Readonly<Record<string, string>>): StoredMessage {
    const now = this.#clock.currentTimeNanosUnsafe()
    this.#lastTimestamp = now > this.#lastTimestamp ? now : this.#lastTimestamp + 1n
    return {
      subject: this.#subject,
      seq: ++this.#lastSeq,
      timestamp: this.#lastTimestamp,
      payload: typeof payload === "string" ? Buffer.from(payload) : payload,
      headers,
    }
  }
}
