/**
 * The broker in memory: the twin of `NatsLive` for tests. Several workers that share the layer share the broker.
 *
 * Same semantics: every stored message is delivered until it is acknowledged, with the same stamp; events and dead letters
 * are stored once for each message id. Time is Effect's clock, so a TestClock moves it.
 */
import { Clock, Context, Effect, Layer, Queue, Stream } from "effect"
import {
  Broker,
  BrokerUnavailable,
  type DeadLetter,
  type Delivery,
  type OutgoingEvent,
  type ParkedKind,
  untroubled,
} from "./Broker.ts"
import type { TraceHeaders } from "../trace/traceContext.ts"
import { MemoryDelivery, MemoryStream, Stamper, type StoredMessage, Timers } from "./MemoryStream.ts"

export interface StoredEvent {
  readonly subject: string
  readonly payload: string
  readonly messageId: string
  readonly trace: TraceHeaders | undefined
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
    /** As a reconnect to a server with another setting does. */
    readonly setMaxPayload: (bytes: number) => Effect.Effect<void>
    /** Requests that are parked for a shard. */
    readonly parkedFor: (kind: ParkedKind, shard: string) => number
  }
>()("objectlog/broker/MemoryBroker") {}

const stampId = ({ subject, seq, timestamp, outcomePrefix }: Delivery) =>
  `${outcomePrefix}${subject}-${seq}-${timestamp}`

/** What the stamp of a parked append takes. */
const stampBytes = 256

const publish = (
  intake: MemoryStream,
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
      const { ackPendingMax = 100_000, responseTopic = "response" } = options
      let maxPayload = options.maxPayload ?? 1024 * 1024
      const clock = yield* Clock.Clock
      const scope = yield* Effect.scope
      const runFork = Effect.runForkWith(yield* Effect.context())
      const fork = (effect: Effect.Effect<void>) => void runFork(Effect.forkIn(effect, scope))
      const timers = new Timers(clock, fork)
      const intake = () => new MemoryStream(timers, ackPendingMax)
      const [appends, queries, retries] = [intake(), intake(), intake()]
      const [logs, query] = [new Stamper("logs", clock), new Stamper("query", clock)]
      const parked = new Map<string, MemoryStream>()
      const parkedOf = (kind: ParkedKind, shard: string): MemoryStream => {
        let found = parked.get(`${kind} ${shard}`)
        if (found === undefined) parked.set(`${kind} ${shard}`, (found = intake()))
        return found
      }
      const parkedIds = new Set<string>()
      const ids = new Set<string>()
      const events: Array<StoredEvent> = []
      const arrivals = yield* Queue.unbounded<StoredEvent>()
      const letters = new Map<string, StoredDeadLetter>()

      const storeEvent = ({ subject, payload, messageId, trace }: StoredEvent) => {
        if (ids.has(messageId)) return
        ids.add(messageId)
        const event = { subject, payload, messageId, trace }
        events.push(event)
        Queue.offerUnsafe(arrivals, event)
      }
      const store = ({ payload, messageId, replyTo, trace }: OutgoingEvent) => {
        // A copy below the response topic is stored too; one for an inbox is only sent, and nobody listens here.
        if (replyTo?.startsWith(`${responseTopic}.`)) {
          storeEvent({ subject: replyTo, payload, messageId: `${messageId}:reply`, trace })
        }
        storeEvent({ subject: responseTopic, payload, messageId, trace })
      }

      const broker = Broker.of({
        maxPayload: () => maxPayload,
        connection: () => untroubled,
        closed: Effect.never,
        state: Effect.sync(() => ({ appends: appends.state(), queries: queries.state(), problems: [] })),
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
        setMaxPayload: (bytes) => Effect.sync(() => void (maxPayload = bytes)),
        parkedFor: (kind, shard) => parkedOf(kind, shard).unsettled.size,
      })
      return Context.make(Broker, broker).pipe(Context.add(MemoryBroker, control))
    }),
  )
