/** How a message ends: its event, its dead letter, and the identity of both. */
import { Effect } from "effect"
import { Broker, type BrokerUnavailable, type Delivery, type OutgoingEvent } from "../broker/Broker.ts"
import type { Placed } from "../domain/LogEntry.ts"
import { encodeAppended, encodeError, type Refusal } from "../domain/Protocol.ts"
import { type RetryPart, retryReason, type Subject } from "../observe/definitions.ts"
import { Metrics } from "../observe/Metrics.ts"
import { Tracing } from "../observe/Tracing.ts"
import type { TraceHeaders } from "../observe/traceContext.ts"
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

/** Repeats an operation of the broker, without end, until it succeeds. */
export const persist = <A>(
  part: RetryPart,
  operation: Effect.Effect<A, BrokerUnavailable>,
): Effect.Effect<A, never, Metrics> =>
  operation.pipe(
    Effect.tapError((error) =>
      Metrics.use((metrics) => metrics.count("retries_total", { part, reason: retryReason(error.operation) })).pipe(
        Effect.andThen(Effect.logWarning(`${error.message}; retrying`)),
      ),
    ),
    Effect.retry(limits.retryForever),
    // The schedule has no end, so an error can't come through.
    Effect.catch(() => Effect.never),
  )

export const publishForever = (events: ReadonlyArray<OutgoingEvent>): Effect.Effect<void, never, Broker | Metrics> =>
  Broker.use((broker) => persist("publish", broker.publish(events)))

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
