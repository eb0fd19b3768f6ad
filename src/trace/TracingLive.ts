/**
 * Exports traces with OTLP over HTTP, by Effect's exporter.
 *
 * A receiver that is away or hangs must not be felt. Effect's exporter drops spans for a minute after an export that
 * failed; what it lacks is added here: a bound on the time of a request and on the number of those under way, beyond which
 * the next one fails at once. So what is held is at most about the spans of `OTEL_BSP_MAX_QUEUE_SIZE`.
 */
import { Clock, Context, Effect, Layer, Redacted, References } from "effect"
import { FetchHttpClient, HttpClient, HttpClientError } from "effect/http"
import { OtlpExporter, OtlpSerialization, OtlpTracer } from "effect/observability"
import { randomUUID } from "node:crypto"
import { version } from "../config/version.ts"
import * as MessageSpans from "./MessageSpans.ts"
import * as otlpProtobuf from "./otlpProtobuf.ts"
import * as Sampler from "./Sampler.ts"
import * as serviceTracer from "./serviceTracer.ts"
import { Tracing } from "./Tracing.ts"
import type { TracingSettings } from "../config/TracingSettings.ts"

/** How long a worker that stops waits for its last spans to be taken. */
const flushMillis = 2_000

/** Between two log lines about a receiver that takes nothing. */
const warningPauseMillis = 10 * 60_000

const boundedClient = ({ batchSpansMax, queueSpansMax, timeoutMillis, url }: TracingSettings) =>
  Effect.gen(function* () {
    const client = yield* HttpClient.HttpClient
    const clock = yield* Clock.Clock
    const underWayMax = Math.max(1, Math.floor(queueSpansMax / batchSpansMax))
    const receiver = new URL(url).host
    let underWay = 0
    let failing = false
    let warnedAt = -Infinity

    const failed = (reason: string) =>
      Effect.suspend(() => {
        failing = true
        const now = clock.currentTimeMillisUnsafe()
        if (now - warnedAt < warningPauseMillis) return Effect.void
        warnedAt = now
        return Effect.logWarning(`traces: ${receiver} does not take spans (${reason}); they are dropped until it does`)
      })
    const succeeded = Effect.suspend(() => {
      if (!failing) return Effect.void
      failing = false
      return Effect.logInfo(`traces: ${receiver} takes spans again`)
    })

    return HttpClient.transform(client, (send, request) =>
      Effect.suspend(() => {
        const unreachable = (description: string) =>
          new HttpClientError.HttpClientError({
            reason: new HttpClientError.TransportError({ request, description }),
          })
        if (underWay >= underWayMax) return Effect.fail(unreachable("too many requests under way"))
        underWay++
        return send.pipe(
          // The whole answer counts, not only its beginning.
          Effect.tap((response) => response.arrayBuffer),
          Effect.timeoutOrElse({
            duration: timeoutMillis,
            orElse: () => Effect.fail(unreachable(`no answer within ${timeoutMillis} ms`)),
          }),
          Effect.tapError((error) => failed(error.reason.description ?? error.reason._tag)),
          Effect.tap(({ status }) => (status < 400 ? succeeded : failed(`status ${status}`))),
          Effect.ensuring(Effect.sync(() => underWay--)),
        )
      }),
    )
  })

const exporting = (settings: TracingSettings, responseTopic: string, errorType: serviceTracer.ErrorType) =>
  Layer.effectContext(
    Effect.gen(function* () {
      const { batchSpansMax, compression, delayMillis, headers, resource, sampling, serviceName, url } = settings
      const otlp = yield* OtlpTracer.make({
        url,
        headers: Redacted.value(headers),
        compression,
        exportInterval: delayMillis,
        maxBatchSize: batchSpansMax,
        shutdownTimeout: flushMillis,
        resource: {
          serviceName,
          serviceVersion: version,
          attributes: { "service.instance.id": randomUUID(), "process.pid": process.pid, ...resource },
        },
      })
      const tracing = MessageSpans.make({
        tracer: serviceTracer.make(otlp, errorType),
        clock: yield* Clock.Clock,
        sampler: Sampler.make(sampling),
        responseTopic,
      })
      return Context.make(Tracing, tracing)
    }),
  ).pipe(
    Layer.provide([
      OtlpExporter.layerFlusher,
      settings.protocol === "http/json" ? OtlpSerialization.layerJson : otlpProtobuf.layer,
      Layer.effect(HttpClient.HttpClient, boundedClient(settings)).pipe(Layer.provide(FetchHttpClient.layer)),
    ]),
  )

/**
 * Traces of a worker; without settings none. `errorType` names the errors of its services. The spans that Effect makes by itself, for each statement and each HTTP
 * request, are made in the span of a message only: nobody pays for those that are not exported.
 */
export const TracingLive = (
  settings: TracingSettings | undefined,
  responseTopic: string,
  errorType: serviceTracer.ErrorType,
): Layer.Layer<never> => {
  const quiet = Layer.succeed(References.TracerEnabled, false)
  return settings === undefined ? quiet : Layer.merge(quiet, exporting(settings, responseTopic, errorType))
}
