/**
 * The message broker as the pipelines see it: streams of deliveries in, events and dead letters out, and a place where
 * requests are parked.
 *
 * `NatsLive` is the live layer, `layerMemory` (Memory.ts) its twin; both pass `test/broker/brokerContract.ts`.
 */
import { Context, Schema, type Effect, type Stream } from "effect"
import type { Stamp } from "../contract/LogEntry.ts"
import type { ErrorCode } from "../contract/ErrorCode.ts"
import type { TracedMessage } from "../trace/MessageTrace.ts"
import type { TraceHeaders } from "../trace/traceContext.ts"

/** The broker cannot be reached or does not confirm. Another attempt may succeed; nothing was lost. */
export class BrokerUnavailable extends Schema.TaggedError<BrokerUnavailable>()("BrokerUnavailable", {
  operation: Schema.String,
  cause: Schema.Defect(),
}) {
  override get message(): string {
    return `broker: ${this.operation} failed: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

/** The connection to the broker has ended, and nothing makes it again: what needs it can't go on in this process. */
export class BrokerClosed extends Schema.TaggedError<BrokerClosed>()("BrokerClosed", { reason: Schema.String }) {
  override get message(): string {
    return `the connection to the broker has ended for good (${this.reason}): a new start makes a new one`
  }
}

/** What a worker does at the broker, as far as the broker can refuse it the right to. */
export const operations = [
  "pull",
  "acknowledge",
  "request",
  "receive",
  "event",
  "copy",
  "dead letter",
  "park",
  // Of room in the broker: what a worker can do without.
  "reserve",
] as const

export type Operation = (typeof operations)[number]

/** Something that is wrong between this worker and the broker. */
export interface Trouble {
  /** In words. */
  readonly text: string
  /** Whether the worker can't do its work meanwhile; otherwise a part of it. */
  readonly disabling: boolean
}

/** What this process knows of its connection without asking the broker. */
export interface ConnectionView {
  readonly connected: boolean
  /** Attempts to make a lost connection again, so far. */
  readonly attempts: number
  readonly troubles: ReadonlyArray<Trouble>
  /** The broker neither refuses for lack of room nor goes on without confirming anything. */
  readonly isStoring: boolean
  /** It is connected, and yet has confirmed or answered nothing for some time. */
  readonly isSilent: boolean
  /** How often the broker has refused the right to something, so far. */
  readonly violations: Readonly<Record<Operation, number>>
}

/** A connection of which there is nothing to say. */
export const untroubled: ConnectionView = {
  connected: true,
  attempts: 0,
  troubles: [],
  isStoring: true,
  isSilent: false,
  violations: Object.fromEntries(operations.map((operation) => [operation, 0])) as Record<Operation, number>,
}

/**
 * One delivery of a stored message. Its stamp and subject are those of the request: one that was parked is delivered
 * with what the intake gave it. Exactly one of `ack` and `retry` settles it; a delivery that is neither settled nor
 * extended with `working` within the broker's `ack_wait` is delivered again. The three only enqueue a frame and never
 * fail: one that is lost on the way leads to a redelivery, which is harmless.
 */
export interface Delivery extends Stamp, TracedMessage {
  /** The subject that it was published to. */
  readonly subject: string
  readonly payload: Uint8Array
  /** The payload as text, or `undefined` where it is not UTF-8. */
  readonly text: string | undefined
  /** About how much memory it takes, in bytes. */
  readonly heldBytes: number
  /** How often it was delivered, 1 the first time. Being parked begins a new count. */
  readonly deliveryCount: number
  /** Begins the ids of what this request leads to: `""`, but for a dead letter that is tried again, each time another one. */
  readonly outcomePrefix: string
  /** The first value of a header, or `undefined`. Names are matched to the letter. Ill-formed where it is not UTF-8. */
  header(name: string): string | undefined
  ack(): void
  /** Hands it back; the broker delivers it again, to any worker, after `delayMillis`. */
  retry(delayMillis: number): void
  /** Tells the broker that it is still being worked on. */
  working(): void
  /** It is going to be kept for long: it is parted from the messages that it shares memory with. */
  detach(): void
}

/**
 * An event to publish. The broker drops a second one with the same `messageId` within its duplicate window. Its members may
 * be made anew whenever they are asked for.
 */
export interface OutgoingEvent {
  readonly payload: string
  /** About how many characters `payload` has, where it is made anew each time. */
  readonly size?: number
  readonly messageId: string
  /** A second subject that gets a copy. */
  readonly replyTo: string | undefined
  /** Headers that the event and its copy carry. */
  readonly trace?: TraceHeaders | undefined
}

export interface DeadLetter {
  readonly code: ErrorCode
  readonly message: string
}

/** Each kind of request of each shard is parked for itself. */
export type ParkedKind = "appends" | "reads"

/** What the broker says about the consumer that all workers share. */
export interface ConsumerState {
  /** Stored and not delivered yet. */
  readonly pending: number
  /** Delivered, and neither acknowledged nor handed back and delivered again. */
  readonly ackPending: number
  /** Sequence number in the stream up to which everything is acknowledged. */
  readonly ackFloor: number
  /** Deliveries so far, repeated ones included. */
  readonly delivered: number
  /** Requests for messages that are open, of all workers. */
  readonly pulls: number
  /** Messages that have reached this process and that nobody took out of the stream yet. */
  readonly buffered: number
  /** Messages taken out of the stream in this process so far. */
  readonly taken: number
}

export interface BrokerState {
  /** `undefined`: there is none. */
  readonly appends: ConsumerState | undefined
  readonly queries: ConsumerState | undefined
  /** Streams and consumers that are missing, or can't serve as they are; in words. */
  readonly problems: ReadonlyArray<string>
}

export class Broker extends Context.Service<
  Broker,
  {
    /** Largest message that the server takes, headers included, in bytes. May change with a reconnect. */
    readonly maxPayload: () => number
    readonly connection: () => ConnectionView
    /** Fails when the connection has ended for good. */
    readonly closed: Effect.Effect<never, BrokerClosed>
    /** Asks the broker for the state of everything that a worker uses: some requests, so not to be asked all the time. */
    readonly state: Effect.Effect<BrokerState, BrokerUnavailable>
    /**
     * Append requests, each delivered to one worker at a time, in chunks as they arrive. Ends never; recovers by itself
     * from lost connections. Interruption stops the pull and hands back what was buffered and not taken.
     */
    readonly appends: Stream.Stream<Delivery, BrokerUnavailable>
    /** Read requests; otherwise like `appends`. */
    readonly queries: Stream.Stream<Delivery, BrokerUnavailable>
    /**
     * Publishes events on the response topic, pipelined, each also on its `replyTo`. Succeeds when the broker has stored
     * every one; then the copies have reached the broker too. In a store that is full, where nothing is left that can give
     * way, it succeeds when the broker has sent every one to those who listen.
     */
    readonly publish: (events: ReadonlyArray<OutgoingEvent>) => Effect.Effect<void, BrokerUnavailable>
    /** Stores a message with payload, headers and the reason in the dead-letter stream. Does not settle it. */
    readonly deadLetter: (delivery: Delivery, reason: DeadLetter) => Effect.Effect<void, BrokerUnavailable>
    /**
     * Stores requests of a shard in the stream of parked requests, once for each stamp. Does not settle them. Gives
     * those that can't be stored there, since they would not fit in `maxPayload` with their stamp, or the store is full.
     */
    readonly park: (
      kind: ParkedKind,
      shard: string,
      deliveries: ReadonlyArray<Delivery>,
    ) => Effect.Effect<ReadonlyArray<Delivery>, BrokerUnavailable>
    /** What was parked for a shard; otherwise like `appends`. */
    readonly parked: (kind: ParkedKind, shard: string) => Stream.Stream<Delivery, BrokerUnavailable>
    /** Refused appends that are to be tried again; otherwise like `appends`. */
    readonly retries: Stream.Stream<Delivery, BrokerUnavailable>
  }
>()("objectlog/broker/Broker") {}
