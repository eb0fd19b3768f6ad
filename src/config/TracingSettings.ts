/**
 * The variables of the OpenTelemetry environment specification that concern traces. Without an endpoint none is looked
 * at. What is allowed there and cannot be served here is an error, since a silent fallback would be found out only when
 * the traces are needed.
 */
import { Effect, Redacted } from "effect"
import { ConfigInvalid, given, integer, parsed } from "./ConfigValue.ts"

/** Which traces are exported. */
export interface Sampling {
  /** Of the traces, 0 … 1. */
  readonly share: number
  /** Whether a sender decides for its own messages; the share is then asked for traces that begin here. */
  readonly heedsParent: boolean
}

export interface TracingSettings {
  /** Takes the spans, by POST. */
  readonly url: string
  /** May hold credentials. */
  readonly headers: Redacted.Redacted<Readonly<Record<string, string>>>
  readonly protocol: "http/protobuf" | "http/json"
  readonly compression: "gzip" | "none"
  /** For one request. */
  readonly timeoutMillis: number
  /** Between two exports. */
  readonly delayMillis: number
  readonly batchSpansMax: number
  readonly queueSpansMax: number
  readonly sampling: Sampling
  readonly serviceName: string
  readonly resource: Readonly<Record<string, string>>
}

const millis = "milliseconds, 1 … 999999999"
const count = "a number, 1 … 999999999"
const positive = integer(1, 999_999_999)

const oneOf =
  <const A extends string>(...all: ReadonlyArray<A>) =>
  (value: string): A | undefined =>
    all.find((each) => each === value.toLowerCase())

/** The variable of traces, which wins, or that of all signals. */
const either = <A>(
  names: readonly [traces: string, all: string],
  fallback: A,
  allowed: string,
  parse: (value: string) => A | undefined,
) => Effect.flatMap(parsed(names[1], fallback, allowed, parse), (found) => parsed(names[0], found, allowed, parse))

const ofSignal = (name: string) =>
  [`OTEL_EXPORTER_OTLP_TRACES_${name}`, `OTEL_EXPORTER_OTLP_${name}`] as const satisfies readonly [string, string]

/** `fetch` refuses a URL with credentials. */
const httpUrl = (value: string): URL | undefined => {
  const url = URL.parse(value)
  const usable = url !== null && ["http:", "https:"].includes(url.protocol) && url.username + url.password === ""
  return usable ? url : undefined
}

const endpoint = Effect.gen(function* () {
  const [traces, all] = ofSignal("ENDPOINT")
  const read = Effect.fnUntraced(function* (variable: string) {
    const value = yield* given(variable)
    if (value === undefined) return undefined
    const url = httpUrl(value.trim())
    if (url !== undefined) return url
    return yield* new ConfigInvalid({
      variable,
      value: value.includes("@") ? "<redacted>" : value,
      allowed: "http://host:port or https://host:port, without credentials",
    })
  })
  const own = yield* read(traces)
  if (own !== undefined) return own.href
  const base = yield* read(all)
  if (base === undefined) return undefined
  base.pathname = `${base.pathname.replace(/\/$/, "")}/v1/traces`
  return base.href
})

/** `name=value,name=value`, values percent-encoded; `undefined` where that is malformed. */
const pairs = (text: string): Record<string, string> | undefined => {
  const found: Record<string, string> = {}
  for (const item of text.split(",")) {
    if (item.trim() === "") continue
    const at = item.indexOf("=")
    const name = item.slice(0, at).trim()
    if (at < 0 || name === "") return undefined
    try {
      found[decodeURIComponent(name)] = decodeURIComponent(item.slice(at + 1).trim())
    } catch {
      return undefined
    }
  }
  return found
}

const headerName = /^[!#$%&'*+\-.^_`|~\dA-Za-z]+$/
const headerValue = /^[\x20-\x7e]*$/

/** Never shown in an error. */
const headers = Effect.gen(function* () {
  for (const variable of ofSignal("HEADERS")) {
    const value = yield* given(variable)
    if (value === undefined) continue
    const found = pairs(value)
    if (
      found !== undefined &&
      Object.entries(found).every(([name, text]) => headerName.test(name) && headerValue.test(text))
    )
      return Redacted.make(found)
    const allowed = "name=value, parted by commas, values percent-encoded"
    return yield* new ConfigInvalid({ variable, value: "<redacted>", allowed })
  }
  return Redacted.make({})
})

const samplers: Readonly<Record<string, { readonly heedsParent: boolean; readonly share: number | undefined }>> = {
  always_on: { heedsParent: false, share: 1 },
  always_off: { heedsParent: false, share: 0 },
  traceidratio: { heedsParent: false, share: undefined },
  parentbased_always_on: { heedsParent: true, share: 1 },
  parentbased_always_off: { heedsParent: true, share: 0 },
  parentbased_traceidratio: { heedsParent: true, share: undefined },
}

const sampling = Effect.gen(function* () {
  const { heedsParent, share } = yield* parsed(
    "OTEL_TRACES_SAMPLER",
    samplers["parentbased_always_on"]!,
    Object.keys(samplers).join(", "),
    (value) => (Object.hasOwn(samplers, value) ? samplers[value] : undefined),
  )
  if (share !== undefined) return { share, heedsParent }
  const ratio = yield* parsed("OTEL_TRACES_SAMPLER_ARG", 1, "a number, 0 … 1", (value) => {
    const number = /^\d*\.?\d+(?:e-?\d+)?$/i.test(value) ? Number(value) : Number.NaN
    return number >= 0 && number <= 1 ? number : undefined
  })
  return { share: ratio, heedsParent }
})

/** Variables for which there is nothing that would read them. */
const notServed = ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"].flatMap(ofSignal)

/** `undefined` where no traces are to be exported. */
export const tracingSettings: Effect.Effect<TracingSettings | undefined, ConfigInvalid> = Effect.gen(function* () {
  const url = yield* endpoint
  if (url === undefined) return undefined
  const trueOrFalse = (value: string) => ({ true: true, false: false })[value.toLowerCase()]
  if (yield* parsed("OTEL_SDK_DISABLED", false, "true or false", trueOrFalse)) return undefined
  if ((yield* parsed("OTEL_TRACES_EXPORTER", "otlp", "otlp or none", oneOf("otlp", "none"))) === "none")
    return undefined
  for (const variable of notServed) {
    const value = yield* given(variable)
    if (value === undefined) continue
    return yield* new ConfigInvalid({ variable, value, allowed: "nothing; Node reads NODE_EXTRA_CA_CERTS" })
  }
  const protocol = yield* either(
    ofSignal("PROTOCOL"),
    "http/protobuf",
    "http/protobuf or http/json",
    oneOf("http/protobuf", "http/json"),
  )
  const timeout = yield* either(ofSignal("TIMEOUT"), 10_000, millis, positive)
  const exportTimeout = yield* parsed("OTEL_BSP_EXPORT_TIMEOUT", 30_000, millis, positive)
  const queueSpansMax = yield* parsed("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, count, positive)
  const resource = yield* parsed<Record<string, string>>(
    "OTEL_RESOURCE_ATTRIBUTES",
    {},
    "name=value, parted by commas, values percent-encoded",
    pairs,
  )
  return {
    url,
    headers: yield* headers,
    protocol,
    compression: yield* either(ofSignal("COMPRESSION"), "none", "gzip or none", oneOf("gzip", "none")),
    timeoutMillis: Math.min(timeout, exportTimeout),
    delayMillis: yield* parsed("OTEL_BSP_SCHEDULE_DELAY", 5_000, millis, positive),
    batchSpansMax: yield* parsed(
      "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
      Math.min(512, queueSpansMax),
      `a number, 1 … ${queueSpansMax}, which is OTEL_BSP_MAX_QUEUE_SIZE`,
      integer(1, queueSpansMax),
    ),
    queueSpansMax,
    sampling: yield* sampling,
    serviceName: (yield* given("OTEL_SERVICE_NAME")) ?? resource["service.name"] ?? "objectlog",
    resource,
  }
})
