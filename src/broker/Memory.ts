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
    /** Messages that are not acknowledged. */
    readonly unsettled: () => number
  }
>()("objectlog/broker/MemoryBroker") {}

/** One durable consumer's messages. */
class Intake {
  readonly subject: string
  readonly #clock: Clock.Clock
  readonly #fork: (effect: Effect.Effect<void>) => void
  readonly unsettled = new Set<number>()
  #ready: Array<MemoryDelivery> = []
  /** Workers that wait. */
  readonly #takers = new Set<() => void>()
  #lastSeq = 0
  #lastTimestamp = 0n
  #delivered = 0

  constructor(subject: string, clock: Clock.Clock, fork: (effect: Effect.Effect<void>) => void) {
    this.subject = subject
    this.#clock = clock
    this.#fork = fork
  }

  store(payload: string | Uint8Array, headers: Readonly<Record<string, string>>): StoredMessage {
    const now = this.#clock.currentTimeNanosUnsafe()
    this.#lastTimestamp = now > this.#lastTimestamp ? now : this.#lastTimestamp + 1n
    const message: StoredMessage = {
      subject: this.subject,
      seq: ++this.#lastSeq,
      timestamp: this.#lastTimestamp,
      payload: typeof payload === "string" ? Buffer.from(payload) : payload,
      headers,
    }
    this.unsettled.add(message.seq)
    this.offer(new MemoryDelivery(this, message, 1))
    return message
  }

  state(): ConsumerState {
    const pending = this.#ready.filter((delivery) => delivery.deliveryCount === 1).length
    return {
      pending,
      ackPending: this.unsettled.size - pending,
      ackFloor: Math.min(this.#lastSeq, ...Array.from(this.unsettled, (seq) => seq - 1)),
      delivered: this.#delivered,
      pulls: this.#takers.size,
    }
  }

  offer(delivery: MemoryDelivery): void {
    this.#ready.push(delivery)
    // All of them: the one who comes first may be interrupted before it takes.
    for (const taker of Array.from(this.#takers)) taker()
  }

  /** Runs something after a delay of the clock. */
  later(millis: number, run: () => void): void {
    this.#fork(Effect.delay(Effect.sync(run), millis))
  }

  /** Waits for a message, and then takes what is there: one who is interrupted in between has taken nothing. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<Delivery>> = Effect.suspend(() => {
    const taken = this.#ready
    if (!isNonEmpty(taken)) return Effect.andThen(this.#arrival, this.take)
    this.#ready = []
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
}

const isNonEmpty = <A>(all: Array<A>): all is [A, ...Array<A>] => all.length > 0

class MemoryDelivery implements Delivery {
  readonly message: StoredMessage
  readonly deliveryCount: number
  readonly #intake: Intake
  #settled = false
  /** Counts the signs of life; a wait that another sign has overtaken does nothing. */
  #signs = 0

  constructor(intake: Intake, message: StoredMessage, deliveryCount: number) {
    this.#intake = intake
    this.message = message
    this.deliveryCount = deliveryCount
  }

  get subject(): string {
    return this.message.subject
  }

  get seq(): number {
    return this.message.seq
  }

  get timestamp(): bigint {
    return this.message.timestamp
  }

  get payload(): Uint8Array {
    return this.message.payload
  }

  header(name: string): string | undefined {
    return this.message.headers[name]
  }

  ack(): void {
    if (this.#settled) return
    this.#settled = true
    this.#intake.unsettled.delete(this.seq)
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
    if (this.#intake.unsettled.has(this.seq)) {
      this.#intake.offer(new MemoryDelivery(this.#intake, this.message, this.deliveryCount + 1))
    }
  }
}

export interface MemoryOptions {
  /** Bytes; default 1 MiB. */
  readonly maxPayload?: number
  readonly responseTopic?: string
}

/** A broker of its own for whoever builds the layer. */
export const layerMemory = (options: MemoryOptions = {}): Layer.Layer<Broker | MemoryBroker> =>
  Layer.effectContext(
    Effect.gen(function* () {
      const { maxPayload = 1024 * 1024, responseTopic = "response" } = options
      const clock = yield* Clock.Clock
      const scope = yield* Effect.scope
      const runFork = Effect.runForkWith(yield* Effect.context())
      const fork = (effect: Effect.Effect<void>) => void runFork(Effect.forkIn(effect, scope))
      const appends = new Intake("logs", clock, fork)
      const queries = new Intake("query", clock, fork)
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
              letters.set(`${delivery.subject}-${delivery.seq}`, { ...reason, original: delivery.message })
            }
          }),
      })
      const control = MemoryBroker.of({
        publishAppend: (payload, headers = {}) => Effect.sync(() => appends.store(payload, headers)),
        publishQuery: (payload, headers = {}) => Effect.sync(() => queries.store(payload, headers)),
        events: () => events,
        nextEvent: Queue.take(arrivals),
        deadLetters: () => [...letters.values()],
        unsettled: () => appends.unsettled.size + queries.unsettled.size,
      })
      return Context.make(Broker, broker).pipe(Context.add(MemoryBroker, control))
    }),
  )
