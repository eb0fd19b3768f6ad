/**
 * The broker in memory: the twin of `NatsLive` for tests. Several workers that share the layer share the broker.
 *
 * Same semantics: every stored message is delivered until it is acknowledged, with the same stamp; events and dead letters
 * are stored once for each message id. Time is Effect's clock, so a TestClock moves it.
 */
import { Clock, Context, Effect, Layer, Queue, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import {
  Broker,
  BrokerUnavailable,
  type ConsumerState,
  type DeadLetter,
  type Delivery,
  type OutgoingEvent,
  type ParkedKind,
} from "./Broker.ts"
import { ackWaitMillis } from "./provision.ts"

/** A message as it was stored. */
export interface StoredMessage {
  readonly subject: string
  readonly seq: number
  readonly timestamp: bigint
  readonly payload: Uint8Array
  readonly headers: Readonly<Record<string, string>>
}

export interface StoredEvent {
  readonly subject: string
  readonly payload: string
  readonly messageId: string
}

export interface StoredDeadLetter extends DeadLetter {
  readonly message: string
  readonly original: StoredMessage
}

type Publish = (
  payload: string | Uint8Array,
  headers?: Readonly<Record<string, string>>,
) => Effect.Effect<StoredMessage>

/** What a test does with the broker from outside. */
export class MemoryBroker extends Context.Service<
  MemoryBroker,
  {
    readonly publishAppend: Publish
    readonly publishQuery: Publish
    /** Events stored so far, in order. */
    readonly events: () => ReadonlyArray<StoredEvent>
    /** The next event that nobody took yet; waits for it. */
    readonly nextEvent: Effect.Effect<StoredEvent>
    readonly deadLetters: () => ReadonlyArray<StoredDeadLetter>
    /** Has a refused append tried again. */
    readonly retry: (original: StoredMessage, outcome: string) => Effect.Effect<void>
    /** Messages that are not acknowledged, wherever they lie. */
    readonly unsettled: () => number
    /** Appends that the intake has delivered and that are not acknowledged. */
    readonly appendsUnderWay: () => number
    /** Reads that the intake has delivered and that are not acknowledged. */
    readonly queriesUnderWay: () => number
    /** Requests that are set aside for a shard. */
    readonly parkedFor: (kind: ParkedKind, shard: string) => number
  }
>()("objectlog/broker/MemoryBroker") {}

/** Deliveries in one chunk at most. */
const pullMax = 1_000

/** A message in one stream: what it presents itself as, and how its outcome's ids begin. */
interface Stored {
  readonly message: StoredMessage
  readonly outcomePrefix: string
}

/** One stream with its durable consumer. */
class Intake {
  readonly #timers: Timers
  readonly #ackPendingMax: number
  readonly unsettled = new Set<Stored>()
  /** Delivered, or handed back, and not acknowledged. */
  readonly underWay = new Set<Stored>()
  #ready: Array<MemoryDelivery> = []
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
    const pending = this.#ready.filter((delivery) => delivery.deliveryCount === 1).length
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
    this.#ready.push(delivery)
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

  /** Waits for a message, and then takes what is there: one who is interrupted in between has taken nothing. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.suspend(() => {
    const taken: Array<MemoryDelivery> = []
    const refused: Array<MemoryDelivery> = []
    let next = 0
    while (next < this.#ready.length && taken.length < pullMax) {
      const delivery = this.#ready[next++]!
      const { stored } = delivery
      // What is under way already may come again; beyond the bound nothing new does.
      if (!this.underWay.has(stored) && this.underWay.size >= this.#ackPendingMax) {
        refused.push(delivery)
      } else {
        this.underWay.add(stored)
        taken.push(delivery)
      }
    }
    if (!isNonEmpty(taken)) return Effect.andThen(this.#arrival, this.take)
    this.#ready = [...refused, ...this.#ready.slice(next)]
    this.#delivered += taken.length
    for (const delivery of taken) delivery.expireLater()
    return Effect.succeed(taken)
  })

  readonly #arrival: Effect.Effect<void> = Effect.callback((resume) => {
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
class Timers {
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

class MemoryDelivery implements Delivery {
  readonly stored: Stored
  readonly deliveryCount: number
  readonly #intake: Intake
  #settled = false
  /** Counts the signs of life; a wait that another sign has overtaken does nothing. */
  #signs = 0

  constructor(intake: Intake, stored: Stored, deliveryCount: number) {
    this.#intake = intake
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

  get outcomePrefix(): string {
    return this.stored.outcomePrefix
  }

  header(name: string): string | undefined {
    return this.stored.message.headers[name]
  }

  ack(): void {
    if (this.#settled) return
    this.#settled = true
    this.#intake.settle(this.stored)
  }

  retry(delayMillis: number): void {
    if (this.#settled) return
    this.#settled = true
    if (delayMillis === 0) this.#again()
    else this.#intake.later(delayMillis, () => this.#again())
  }

  working(): void {
    if (!this.#settled) this.expireLater()
  }

  /** Delivered again after `ack_wait` without a sign. */
  expireLater(): void {
    const sign = ++this.#signs
    this.#intake.later(ackWaitMillis, () => {
      if (this.#settled || sign !== this.#signs) return
      this.#settled = true
      this.#again()
    })
  }

  #again(): void {
    if (this.#intake.unsettled.has(this.stored)) {
      this.#intake.offer(new MemoryDelivery(this.#intake, this.stored, this.deliveryCount + 1))
    }
  }
}

/** Stamps what is published, as a stream does. */
class Stamper {
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

const stampId = ({ subject, seq, timestamp, outcomePrefix }: Delivery) =>
  `${outcomePrefix}${subject}-${seq}-${timestamp}`

/** What the stamp of a parked append takes. */
const stampBytes = 256

const publish = (
  intake: Intake,
  stamper: Stamper,
  payload: string | Uint8Array,
  headers: Readonly<Record<string, string>>,
) =>
  Effect.sync(() => {
    const message = stamper.stamp(payload, headers)
    intake.store({ message, outcomePrefix: "" })
    return message
  })

export interface MemoryOptions {
  /** Bytes; default 1 MiB. */
  readonly maxPayload?: number
  /** Appends of one stream that may be under way; default 100,000, as on the live broker. */
  readonly ackPendingMax?: number
  readonly responseTopic?: string
}

/** A broker of its own for whoever builds the layer. */
export const layerMemory = (options: MemoryOptions = {}): Layer.Layer<Broker | MemoryBroker> =>
  Layer.effectContext(
    Effect.gen(function* () {
      const { maxPayload = 1024 * 1024, ackPendingMax = 100_000, responseTopic = "response" } = options
      const clock = yield* Clock.Clock
      const scope = yield* Effect.scope
      const runFork = Effect.runForkWith(yield* Effect.context())
      const fork = (effect: Effect.Effect<void>) => void runFork(Effect.forkIn(effect, scope))
      const timers = new Timers(clock, fork)
      const intake = () => new Intake(timers, ackPendingMax)
      const [appends, queries, retries] = [intake(), intake(), intake()]
      const [logs, query] = [new Stamper("logs", clock), new Stamper("query", clock)]
      const parked = new Map<string, Intake>()
      const parkedOf = (kind: ParkedKind, shard: string): Intake => {
        let found = parked.get(`${kind} ${shard}`)
        if (found === undefined) parked.set(`${kind} ${shard}`, (found = intake()))
        return found
      }
      const parkedIds = new Set<string>()
      const ids = new Set<string>()
      const events: Array<StoredEvent> = []
      const arrivals = yield* Queue.unbounded<StoredEvent>()
      const letters = new Map<string, StoredDeadLetter>()

      const storeEvent = (subject: string, payload: string, messageId: string) => {
        if (ids.has(messageId)) return
        ids.add(messageId)
        const event = { subject, payload, messageId }
        events.push(event)
        Queue.offerUnsafe(arrivals, event)
      }
      const store = ({ payload, messageId, replyTo }: OutgoingEvent) => {
        // A copy below the response topic is stored too; one for an inbox is only sent, and nobody listens here.
        if (replyTo?.startsWith(`${responseTopic}.`)) storeEvent(replyTo, payload, `${messageId}:reply`)
        storeEvent(responseTopic, payload, messageId)
      }

      const broker = Broker.of({
        maxPayload: () => maxPayload,
        isConnected: () => true,
        state: Effect.sync(() => ({ appends: appends.state(), queries: queries.state(), missing: [] })),
        appends: Stream.fromPull(Effect.succeed(appends.take)),
        queries: Stream.fromPull(Effect.succeed(queries.take)),
        publish: (outgoing) =>
          Effect.suspend(() => {
            for (const event of outgoing) {
              if (Buffer.byteLength(event.payload) > maxPayload) {
                const cause = new Error("larger than max_payload")
                return Effect.fail(new BrokerUnavailable({ operation: "publish", cause }))
              }
              store(event)
            }
            return Effect.void
          }),
        deadLetter: (delivery, reason) =>
          Effect.sync(() => {
            if (delivery instanceof MemoryDelivery) {
              letters.set(stampId(delivery), { ...reason, original: delivery.stored.message })
            }
          }),
        park: (kind, shard, all) =>
          Effect.sync(() => {
            const tooLarge: Array<Delivery> = []
            for (const delivery of all) {
              if (!(delivery instanceof MemoryDelivery)) continue
              if (delivery.payload.byteLength + stampBytes > maxPayload) tooLarge.push(delivery)
              else if (!parkedIds.has(stampId(delivery))) {
                parkedIds.add(stampId(delivery))
                parkedOf(kind, shard).store({ message: delivery.stored.message, outcomePrefix: delivery.outcomePrefix })
              }
            }
            return tooLarge
          }),
        parked: (kind, shard) => Stream.fromPull(Effect.sync(() => parkedOf(kind, shard).take)),
        retries: Stream.fromPull(Effect.succeed(retries.take)),
      })
      const control = MemoryBroker.of({
        publishAppend: (payload, headers = {}) => publish(appends, logs, payload, headers),
        publishQuery: (payload, headers = {}) => publish(queries, query, payload, headers),
        retry: (message, outcome) => Effect.sync(() => retries.store({ message, outcomePrefix: `${outcome}-` })),
        events: () => events,
        nextEvent: Queue.take(arrivals),
        deadLetters: () => [...letters.values()],
        unsettled: () =>
          [appends, queries, retries, ...parked.values()].reduce((sum, each) => sum + each.unsettled.size, 0),
        appendsUnderWay: () => appends.underWay.size,
        queriesUnderWay: () => queries.underWay.size,
        parkedFor: (kind, shard) => parkedOf(kind, shard).unsettled.size,
      })
      return Context.make(Broker, broker).pipe(Context.add(MemoryBroker, control))
    }),
  )
