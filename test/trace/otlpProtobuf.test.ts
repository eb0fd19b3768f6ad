/** The writer of export requests gives the same bytes as Effect's serialization, whatever the spans hold. */
import { assert, it } from "@effect/vitest"
import { Arbitrary, Effect } from "effect"
import { OtlpSerialization } from "effect/observability"
import { encodeTraces } from "../../src/trace/otlpProtobuf.ts"
import { int, pick, text } from "../contract/arbitraries.ts"

type Traces = Parameters<typeof encodeTraces>[0]
type Span = Traces["resourceSpans"][number]["scopeSpans"][number]["spans"][number]
type AnyValue = Span["attributes"][number]["value"]

const several = <A>(one: Arbitrary.Arbitrary<A>) => Arbitrary.array(one, { maxLength: 5 })

const hex = (digits: number) =>
  Arbitrary.map(Arbitrary.array(int(0, 15), { minLength: digits, maxLength: digits }), (all) =>
    all.map((digit) => digit.toString(16)).join(""),
  )

/** Around the places where a length or a number needs one more byte. */
const long = Arbitrary.map(
  Arbitrary.all([text, pick([0, 1, 42, 43, 126, 127, 128, 129, 5_000, 16_383, 16_384, 70_000])]),
  ([some, length]) => some + "é".repeat(length >> 1),
)
const count = pick([0, 1, 127, 128, 300, 2 ** 31 - 1, 2 ** 31])
const nanos = Arbitrary.map(Arbitrary.all([int(0, 2 ** 31), int(0, 2 ** 31)]), ([a, b]) =>
  String(BigInt(a) * BigInt(b)),
)

const scalar: Arbitrary.Arbitrary<AnyValue> = Arbitrary.map(
  Arbitrary.all([int(0, 6), long, int(-(2 ** 31), 2 ** 31), pick([0.5, -1e300, Number.NaN, Number.POSITIVE_INFINITY])]),
  ([kind, stringValue, number, doubleValue]): AnyValue =>
    [
      { stringValue },
      { boolValue: number % 2 === 0 },
      { intValue: number },
      { intValue: String(BigInt(number) * 2n ** 31n) },
      { doubleValue },
      { bytesValue: Buffer.from(stringValue) },
      {},
    ][kind]!,
)
const keyValue = <A>(value: Arbitrary.Arbitrary<A>) =>
  Arbitrary.map(Arbitrary.all([text, value]), ([key, value]) => ({ key, value }))
const value: Arbitrary.Arbitrary<AnyValue> = Arbitrary.map(
  Arbitrary.all([int(0, 5), scalar, several(scalar), several(keyValue(scalar))]),
  ([kind, one, values, pairs]): AnyValue =>
    kind === 0 ? { arrayValue: { values } } : kind === 1 ? { kvlistValue: { values: pairs } } : one,
)
const attributes = several(keyValue(value))

const event: Arbitrary.Arbitrary<Span["events"][number]> = Arbitrary.map(
  Arbitrary.all([attributes, text, nanos, count]),
  ([attributes, name, timeUnixNano, droppedAttributesCount]) => ({
    attributes,
    name,
    timeUnixNano,
    droppedAttributesCount,
  }),
)
const link: Arbitrary.Arbitrary<Span["links"][number]> = Arbitrary.map(
  Arbitrary.all([attributes, hex(32), hex(16), count]),
  ([attributes, traceId, spanId, droppedAttributesCount]) => ({ attributes, traceId, spanId, droppedAttributesCount }),
)
const span: Arbitrary.Arbitrary<Span> = Arbitrary.map(
  Arbitrary.all([
    Arbitrary.all([hex(32), hex(16), hex(16), text, int(0, 5), nanos, nanos, int(0, 2)]),
    Arbitrary.all([attributes, several(event), several(link), count, text]),
  ]),
  ([
    [traceId, spanId, parent, name, kind, startTimeUnixNano, endTimeUnixNano, code],
    [attributes, events, links, dropped, message],
  ]) => ({
    traceId,
    spanId,
    parentSpanId: dropped === 0 ? undefined : parent,
    name,
    kind,
    startTimeUnixNano,
    endTimeUnixNano,
    attributes,
    droppedAttributesCount: dropped,
    events,
    droppedEventsCount: dropped,
    links,
    droppedLinksCount: dropped,
    status: code === 2 ? { code, message } : { code: code as 0 | 1 },
  }),
)
const traces: Arbitrary.Arbitrary<Traces> = Arbitrary.map(
  Arbitrary.all([attributes, several(span), text, count]),
  ([attributes, spans, version, droppedAttributesCount]) => ({
    resourceSpans: [
      {
        resource: { attributes, droppedAttributesCount },
        scopeSpans: [
          { scope: { name: "effect", version }, spans, schemaUrl: version },
          { scope: { name: "" }, spans: [] },
        ],
        schemaUrl: version,
      },
    ],
  }),
)

const effects = Effect.runSync(Effect.provide(OtlpSerialization.OtlpSerialization, OtlpSerialization.layerProtobuf))

const assertSame = (traces: Traces) => {
  const body = effects.traces(traces)
  assert.isTrue(body._tag === "Uint8Array" && Buffer.from(encodeTraces(traces)).equals(body.body))
}

it.prop("traces are the same bytes as Effect's", [traces], ([traces]) => assertSame(traces))

it("a text may be longer than two megabytes, and end anywhere in the buffer", () => {
  for (const length of [2 ** 21 - 1, 2 ** 21, ...Array.from({ length: 64 }, (_, i) => 65_536 - 100 + i)]) {
    const value = { stringValue: "x".repeat(length) }
    const spans = [0, 1].map((code) => ({
      traceId: "4bf92f3577b34da6a3ce929d0e0e4736",
      spanId: "00f067aa0ba902b7",
      parentSpanId: undefined,
      name: "n",
      kind: 1,
      startTimeUnixNano: "1",
      endTimeUnixNano: "2",
      attributes: [{ key: "k", value }],
      droppedAttributesCount: 2 ** 31 - 1,
      events: [],
      droppedEventsCount: 2 ** 31 - 1,
      links: [],
      droppedLinksCount: 2 ** 31 - 1,
      status: { code: code as 0 | 1 },
    }))
    const scopeSpans = [{ scope: { name: "effect" }, spans }]
    assertSame({ resourceSpans: [{ resource: { attributes: [], droppedAttributesCount: 0 }, scopeSpans }] })
  }
})
