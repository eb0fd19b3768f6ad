/** Makes the spans of messages and batches with a tracer, for those that a sampler chooses. */
import { type Clock, Context, Effect, Exit, Option, References, Tracer } from "effect"
import { type MessageTrace, passOn, type TracedMessage } from "./MessageTrace.ts"
import type { Sampler } from "./Sampler.ts"
import { SpanFailed } from "./serviceTracer.ts"
import { formatParent, type TraceHeaders } from "./traceContext.ts"
import { passedOn, type Sender, senderOf, type Tracing } from "./Tracing.ts"

/** Most links of a span, which is also the default of the OpenTelemetry SDKs: a batch may have more messages. */
const linksMax = 128

export interface MessageSpansOptions {
  readonly tracer: Tracer.Tracer
  readonly clock: Clock.Clock
  readonly sampler: Sampler
  readonly responseTopic: string
}

interface NewSpan {
  readonly name: string
  readonly kind: Tracer.SpanKind
  readonly parent: Tracer.AnySpan | undefined
  readonly links?: ReadonlyArray<Tracer.AnySpan>
  readonly attributes: Readonly<Record<string, unknown>>
}

const toLink = (span: Tracer.AnySpan): Tracer.SpanLink => ({ span, attributes: {} })

export const make = ({ clock, responseTopic, sampler, tracer }: MessageSpansOptions): Tracing => {
  const now = () => clock.currentTimeNanosUnsafe()

  const start = ({ attributes, kind, links = [], name, parent }: NewSpan): Tracer.Span => {
    const span = tracer.span({
      name,
      kind,
      parent: Option.fromUndefinedOr(parent),
      annotations: Context.empty(),
      links: links.map(toLink),
      startTime: now(),
      root: parent === undefined,
      sampled: true,
    })
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined) span.attribute(key, value)
    return span
  }

  /** `traceId` is that of a trace which begins here. */
  const trace = (delivery: TracedMessage, sender: Sender | undefined, traceId: string | undefined): MessageTrace => {
    const span = start({
      name: `process ${delivery.subject}`,
      kind: "consumer",
      parent: sender === undefined ? undefined : Tracer.externalSpan(sender.parent),
      attributes: {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": delivery.subject,
        "messaging.message.id": delivery.header("Nats-Msg-Id"),
        "messaging.message.body.size": delivery.payload.byteLength,
        "messaging.nats.sequence": delivery.seq,
        "messaging.nats.delivery_count": delivery.deliveryCount,
      },
    })
    // The sampler chose it, and a tracer would draw another one.
    if (traceId !== undefined) Object.defineProperty(span, "traceId", { value: traceId })
    let sending: Tracer.Span | undefined
    let code: string | undefined
    const sent = () => {
      sending?.end(now(), Exit.void)
      sending = undefined
    }
    return {
      span,
      send: (events): TraceHeaders => {
        sending = start({
          name: `publish ${responseTopic}`,
          kind: "producer",
          parent: span,
          attributes: {
            "messaging.system": "nats",
            "messaging.operation.type": "send",
            "messaging.operation.name": "publish",
            "messaging.destination.name": responseTopic,
            "messaging.batch.message_count": events > 1 ? events : undefined,
          },
        })
        return { traceparent: formatParent(sending), tracestate: sender?.tracestate }
      },
      sent,
      refused: (reason) => {
        code = reason
      },
      settled: (how) => {
        sent()
        span.attribute("messaging.nats.settlement", how === "ack" ? "ack" : "nak")
        span.end(now(), code === undefined ? Exit.void : Exit.fail(new SpanFailed({ errorType: code })))
      },
    }
  }

  /** The span is current, and what makes spans by itself, such as a statement, makes them below it. */
  const inSpan = <A, E, R>(span: Tracer.Span, self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    self.pipe(
      Effect.provideService(Tracer.ParentSpan, span),
      Effect.provideService(Tracer.Tracer, tracer),
      Effect.provideService(References.TracerEnabled, true),
    ) as Effect.Effect<A, E, R>

  return {
    receive: (delivery) => {
      const sender = senderOf(delivery)
      if (sender === undefined) {
        const traceId = sampler.begins()
        if (traceId !== undefined) delivery.trace = trace(delivery, undefined, traceId)
      } else if (sampler.follows(sender.parent)) {
        delivery.trace = trace(delivery, sender, undefined)
      } else {
        delivery.trace = passOn(passedOn(sender, false))
      }
    },
    within: (delivery, self) => {
      const span = delivery.trace?.span
      return span === undefined ? self : inSpan(span, self)
    },
    batch: (name, shard, works, self, failed) =>
      Effect.suspend(() => {
        const spans: Array<Tracer.Span> = []
        for (const { delivery } of works) if (delivery.trace?.span !== undefined) spans.push(delivery.trace.span)
        if (spans.length === 0) return self
        const batch = start({
          name,
          kind: "internal",
          parent: spans[0],
          links: spans.slice(0, linksMax),
          attributes: {
            "objectlog.shard": shard,
            "messaging.system": "nats",
            "messaging.batch.message_count": works.length,
          },
        })
        for (const span of spans) if (span.links.length < linksMax) span.addLinks([toLink(batch)])
        return inSpan(batch, self).pipe(
          Effect.onExit((exit) =>
            Effect.sync(() => {
              const errorType = exit._tag === "Success" ? failed?.(exit.value) : undefined
              batch.end(now(), errorType === undefined ? exit : Exit.fail(new SpanFailed({ errorType })))
            }),
          ),
        )
      }),
  }
}
