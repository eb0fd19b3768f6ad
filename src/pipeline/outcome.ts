/** How a message ends: its event, its dead letter, and the identity of both. */
import { Effect, Option } from "effect"
import { Broker, type BrokerUnavailable, type Delivery, type OutgoingEvent, type ParkedKind } from "../broker/Broker.ts"
import type { Placed } from "../contract/LogEntry.ts"
import { encodeAppended, encodeError } from "../contract/Event.ts"
import type { Refusal } from "../contract/Request.ts"
import { type RetryPart, retryReason, type Subject } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { Tracing } from "../trace/Tracing.ts"
import type { TraceHeaders } from "../trace/traceContext.ts"
import * as limits from "./limits.ts"
import type { Work } from "./Waiting.ts"

/**
 * The id of a message's outcome for the broker's deduplication: one outcome per stored message, so its stamp is enough,
 * until it is refused and tried again.
 */
export const outcomeId = ({ subject, seq, timestamp, outcomePrefix }: Delivery): string =>
  `${outcomePrefix}${subject}-${seq}-${timestamp}`

/** The event of an append that is stored. It is encoded when it is sent: while its confirmation is awaited, this is all. */
export class Appended implements OutgoingEvent {
  readonly #work: Work
  readonly #placed: Placed
  readonly trace: TraceHeaders | undefined

  constructor(work: Work, placed: Placed) {
    this.#work = work
    this.#placed = placed
    this.trace = work.delivery.trace?.send(1)
  }

  get payload(): string {
    return encodeAppended(this.#work.entry.id, this.#placed, this.#work.requestId)
  }

  get size(): number {
    return 256 + (this.#work.requestId?.length ?? 0)
  }

  get messageId(): string {
    return outcomeId(this.#work.delivery)
  }

  get replyTo(): string | undefined {
    return this.#work.replyTo
  }
}

/** How long ago the broker stored a message. Never negative, which clocks of two machines may make it. */
export const secondsSince = ({ timestamp }: Delivery, nowMillis: number): number =>
  Math.max(0, nowMillis / 1e3 - Number(timestamp) / 1e9)

/** What MODE=debug shows of a message: where it came from, never what it says. */
export const logDelivery = (type: Subject, delivery: Delivery): Effect.Effect<void> => {
  const { seq, deliveryCount, payload } = delivery
  const line = Effect.annotateLogs(Effect.logDebug(`${type} received`), {
    seq,
    deliveryCount,
    bytes: payload.byteLength,
  })
  return Effect.flatMap(Tracing, (tracing) => tracing.within(delivery, line))
}

const attempted = <A>(
  part: RetryPart,
  operation: Effect.Effect<A, BrokerUnavailable>,
): Effect.Effect<A, BrokerUnavailable, Metrics> =>
  Effect.tapError(operation, (error) =>
    Metrics.use((metrics) => metrics.count("retries_total", { part, reason: retryReason(error.operation) })).pipe(
      Effect.andThen(Effect.logWarning(`${error.message}; retrying`)),
    ),
  )

/** Repeats an operation of the broker, without end, until it succeeds. */
const persist = <A>(
  part: RetryPart,
  operation: Effect.Effect<A, BrokerUnavailable>,
): Effect.Effect<A, never, Metrics> =>
  attempted(part, operation).pipe(
    Effect.retry(limits.retryForever),
    // The schedule has no end: an error that came through would be a bug.
    Effect.orDie,
  )

/** The same while it is wanted; none where that ended first. */
const persistWhile = <A>(
  part: RetryPart,
  operation: Effect.Effect<A, BrokerUnavailable>,
  isWanted: () => boolean,
): Effect.Effect<Option.Option<A>, never, Metrics> =>
  attempted(part, operation).pipe(Effect.retry({ schedule: limits.retryForever, while: isWanted }), Effect.option)

export const publishForever = (events: ReadonlyArray<OutgoingEvent>): Effect.Effect<void, never, Broker | Metrics> =>
  Broker.use((broker) => persist("publish", broker.publish(events)))

/** The same, as long as that is wanted; whether they are published. */
export const publishWhile = (
  events: ReadonlyArray<OutgoingEvent>,
  isWanted: () => boolean,
): Effect.Effect<boolean, never, Broker | Metrics> =>
  Broker.use((broker) => persistWhile("publish", broker.publish(events), isWanted)).pipe(Effect.map(Option.isSome))

/**
 * Sets requests of a shard aside and acknowledges them. Gives those that are not: they don't fit there, or the broker does not store
 * them at present. To try without end would hold up all other shards.
 */
export const park = Effect.fnUntraced(function* (
  kind: ParkedKind,
  shard: string,
  deliveries: ReadonlyArray<Delivery>,
): Effect.fn.Return<ReadonlyArray<Delivery>, never, Broker | Metrics> {
  const broker = yield* Broker
  const metrics = yield* Metrics
  const rest = new Set(
    yield* Effect.catch(attempted("park", broker.park(kind, shard, deliveries)), () => Effect.succeed(deliveries)),
  )
  const parked = deliveries.filter((delivery) => !rest.has(delivery))
  for (const delivery of parked) delivery.ack()
  yield* metrics.count("parked_total", { shard, kind }, parked.length)
  return [...rest]
})

/** Dead-letters, answers and acknowledges one message; `type` is the kind of the request. */
export const dismiss: (
  type: Subject,
  delivery: Delivery,
  refusal: Refusal,
) => Effect.Effect<void, never, Broker | Metrics> = Effect.fnUntraced(
  function* (type: Subject, delivery: Delivery, refusal: Refusal) {
    const broker = yield* Broker
    const metrics = yield* Metrics
    delivery.trace?.refused(refusal.code)
    yield* persist("dead letter", broker.deadLetter(delivery, { code: refusal.code, message: refusal.message }))
    yield* publishForever([
      {
        payload: encodeError(type, refusal),
        messageId: outcomeId(delivery),
        replyTo: refusal.replyTo,
        trace: delivery.trace?.send(1),
      },
    ])
    delivery.ack()
    yield* metrics.count("dead_letters_total", { code: refusal.code })
    yield* metrics.count("messages_total", { subject: type, outcome: refusal.code })
  },
  (self, _, delivery) => Effect.flatMap(Tracing, (tracing) => tracing.within(delivery, self)),
)
