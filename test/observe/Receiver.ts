/** An OTLP receiver for tests: an HTTP server that keeps the spans that it is sent, decoded. */
import { Context, Effect, Layer } from "effect"
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import { gunzipSync } from "node:zlib"

interface KeyValue {
  readonly key: string
  readonly value: { readonly stringValue?: string; readonly intValue?: string | number; readonly boolValue?: boolean }
}

interface OtlpSpan {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly name: string
  readonly kind: number
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly attributes: ReadonlyArray<KeyValue>
  readonly events: ReadonlyArray<{ readonly attributes: ReadonlyArray<KeyValue> }>
  readonly status: { readonly code: number; readonly message?: string }
  readonly links: ReadonlyArray<{ readonly traceId: string; readonly spanId: string }>
}

interface OtlpTraces {
  readonly resourceSpans: ReadonlyArray<{
    readonly resource: { readonly attributes: ReadonlyArray<KeyValue> }
    readonly scopeSpans: ReadonlyArray<{ readonly spans: ReadonlyArray<OtlpSpan> }>
  }>
}

export interface Span extends Omit<OtlpSpan, "attributes"> {
  readonly attributes: Readonly<Record<string, string | number | boolean>>
  readonly resource: Readonly<Record<string, string | number | boolean>>
}

/** The numbers that OTLP gives the kinds of spans. */
export const kinds = { internal: 1, client: 3, producer: 4, consumer: 5 } as const

const toRecord = (all: ReadonlyArray<KeyValue>): Span["attributes"] =>
  Object.fromEntries(
    all.map(({ key, value }) => [
      key,
      value.stringValue ?? value.boolValue ?? (value.intValue === undefined ? "" : Number(value.intValue)),
    ]),
  )

const spansOf = ({ resourceSpans }: OtlpTraces): ReadonlyArray<Span> =>
  resourceSpans.flatMap(({ resource, scopeSpans }) =>
    scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        ...span,
        attributes: toRecord(span.attributes),
        resource: toRecord(resource.attributes),
      })),
    ),
  )

/** What a request to a receiver looked like. */
interface Export {
  readonly path: string
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
}

export interface Receiving {
  /** For `OTEL_EXPORTER_OTLP_ENDPOINT`. */
  readonly url: string
  readonly exports: ReadonlyArray<Export>
  /** Waits until the spans are there that are looked for; fails after a while with what is there. */
  readonly until: <A>(what: string, find: (spans: ReadonlyArray<Span>) => A | undefined) => Effect.Effect<A>
}

/** `answer` sends the response, or does not. */
export const receiving = (answer: (response: ServerResponse) => void = (response) => response.end("{}")) =>
  Effect.gen(function* () {
    const exports: Array<Export> = []
    const spans: Array<Span> = []
    const waiting = new Set<() => void>()
    const take = async (request: IncomingMessage, response: ServerResponse) => {
      const chunks: Array<Buffer> = []
      for await (const chunk of request) chunks.push(chunk as Buffer)
      const whole = Buffer.concat(chunks)
      const body = request.headers["content-encoding"] === "gzip" ? gunzipSync(whole) : whole
      exports.push({ path: request.url ?? "", headers: request.headers, body })
      if (request.headers["content-type"] === "application/json") {
        spans.push(...spansOf(JSON.parse(body.toString()) as OtlpTraces))
      }
      answer(response)
      for (const check of waiting) check()
    }
    const server = yield* Effect.acquireRelease(
      Effect.callback<ReturnType<typeof createServer>>((resume) => {
        const made = createServer((request, response) => {
          take(request, response).catch((error: unknown) =>
            response.destroy(error instanceof Error ? error : undefined),
          )
        })
        made.listen(0, "127.0.0.1", () => resume(Effect.succeed(made)))
      }),
      (made) =>
        Effect.callback<void>((resume) => {
          made.close(() => resume(Effect.void))
          made.closeAllConnections()
        }),
    )
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    const until: Receiving["until"] = (what, find) =>
      Effect.callback<NonNullable<ReturnType<typeof find>>>((resume) => {
        const check = () => {
          const found = find(spans)
          if (found === undefined || found === null) return
          waiting.delete(check)
          resume(Effect.succeed(found))
        }
        waiting.add(check)
        check()
        return Effect.sync(() => waiting.delete(check))
      }).pipe(
        Effect.timeoutOrElse({
          duration: "15 seconds",
          orElse: () =>
            Effect.die(new Error(`expected spans: ${what}; there are: ${spans.map(({ name }) => name).join(", ")}`)),
        }),
      )
    return { url: `http://127.0.0.1:${port}`, exports, until } satisfies Receiving
  })

export class Receiver extends Context.Service<Receiver, Receiving>()("test/observe/Receiver") {
  static readonly layer = Layer.effect(Receiver, receiving())
}
