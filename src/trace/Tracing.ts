/**
 * Traces as the pipelines see them. Without `TracingLive` nothing is recorded, and the trace context of a message is
 * passed on to its events.
 *
 * Spans, by the OpenTelemetry conventions for messaging and databases:
 *
 * - `process logs`, a consumer span for each message that is sampled, child of its sender's span, until it is settled.
 * - `append batch`, one for each append transaction with such a message, and `read batch`, one for each fetch of first pages: parents
 *   of the statements' spans. They link to the spans of their messages and these to them; the parent is the first message's, so that
 *   one trace shows all.
 * - `publish response`, a producer span below the message's, for its event or for some pages. It is what the events name
 *   as their parent.
 */
import { Context, type Effect } from "effect"
import { passOn, type TracedMessage } from "./MessageTrace.ts"
import { checkedState, formatParent, parseParent, type TraceHeaders, type TraceParent } from "./traceContext.ts"

export interface Tracing {
  /** Begins the trace of a delivery that was just taken from the broker; it is in `delivery.trace` then, if there is one. */
  readonly receive: (delivery: TracedMessage) => void
  /** Runs an effect in the span of a message, where that has one. */
  readonly within: <A, E, R>(delivery: TracedMessage, self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /**
   * Runs what is done for several messages together on a shard, in a span of its own, where one of them has one. An answer
   * that is a failure to whoever reads the trace has its type told by `failed`.
   */
  readonly batch: <A, E, R>(
    name: "append batch" | "read batch",
    shard: string,
    works: ReadonlyArray<{ readonly delivery: TracedMessage }>,
    self: Effect.Effect<A, E, R>,
    failed?: (answer: A) => string | undefined,
  ) => Effect.Effect<A, E, R>
}

/** The sender of a message, and the header with the other vendors' states. */
export interface Sender {
  readonly parent: TraceParent
  readonly tracestate: string | undefined
}

/**
 * Reads the sender from the headers. Their names are lower-case, but for clients that write them as HTTP libraries do.
 */
export const senderOf = (delivery: TracedMessage): Sender | undefined => {
  const text = delivery.header("traceparent") ?? delivery.header("Traceparent")
  const parent = text === undefined ? undefined : parseParent(text)
  if (parent === undefined) return undefined
  return { parent, tracestate: checkedState(delivery.header("tracestate") ?? delivery.header("Tracestate")) }
}

/** What the events of a message carry that is not sampled here. */
export const passedOn = ({ parent, tracestate }: Sender, sampled: boolean): TraceHeaders => ({
  traceparent: formatParent({ ...parent, sampled }),
  tracestate,
})

export const Tracing: Context.Reference<Tracing> = Context.Reference<Tracing>("objectlog/trace/Tracing", {
  defaultValue: () => ({
    receive: (delivery) => {
      const sender = senderOf(delivery)
      if (sender !== undefined) delivery.trace = passOn(passedOn(sender, sender.parent.sampled))
    },
    within: (_, self) => self,
    batch: (_, __, ___, self) => self,
  }),
})
