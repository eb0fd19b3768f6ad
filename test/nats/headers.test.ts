/** Header texts have a character for each byte. */
import { MsgHdrsImpl } from "@nats-io/nats-core/internal"
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary } from "effect"
import { kept, unkept } from "../../src/broker/keptHeaders.ts"
import { blockText, firstHeader, type Headers, headerValue, idBlock, parseHeaders } from "../../src/nats/headers.ts"
import { eventHeaders } from "../../src/broker/publishing.ts"
import { checkedState, formatParent } from "../../src/trace/traceContext.ts"
import * as draw from "../contract/arbitraries.ts"

const block = "NATS/1.0\r\na: 1\r\nA:\t2 \r\na:3\r\nno colon\r\nb: \u00c3\u00a0\r\nspaces:   \r\n\r\n"

describe("headers", () => {
  it("are read to the letter, in their order", () => {
    assert.strictEqual(firstHeader(block, "a"), "1")
    assert.strictEqual(firstHeader(block, "A"), "2")
    assert.strictEqual(firstHeader(block, "spaces"), "")
    assert.isUndefined(firstHeader(block, "c"))
    assert.deepStrictEqual(parseHeaders(block), [
      ["a", "1"],
      ["A", "2"],
      ["a", "3"],
      // The last byte of à is no space.
      ["b", "\u00c3\u00a0"],
      ["spaces", ""],
    ])
  })

  it("are written as they are read", () => {
    const headers = [
      ["x", "\u00ff\u00c3\u00a0"],
      ["Nats-Msg-Id", "1"],
    ] as const
    assert.strictEqual(blockText(headers), "NATS/1.0\r\nx: \u00ff\u00c3\u00a0\r\nNats-Msg-Id: 1\r\n\r\n")
    assert.deepStrictEqual(parseHeaders(blockText(headers)), headers)
  })

  it("are UTF-8 as values; other bytes stay different and are seen to be wrong", () => {
    assert.strictEqual(headerValue("m-1"), "m-1")
    assert.strictEqual(headerValue("\u00c3\u00a9"), "é")
    const [a, b] = ["\u00ff", "\u00fe"].map(headerValue)
    assert.notStrictEqual(a, b)
    assert.isFalse(a!.isWellFormed())
    assert.strictEqual(headerValue("\u00c3\u00a9\u00ff"), "\udcc3\udca9\udcff")
  })

  it("a value of a million spaces takes no time", () => {
    const spaces = " ".repeat(1_000_000)
    assert.strictEqual(firstHeader(`NATS/1.0\r\na: x${spaces}y\r\n\r\n`, "a")!.length, 1_000_002)
  })

  it("are not written where they would be read as something else", () => {
    for (const value of ["a\r\nb: c", "a\rb", "a\nb", "\n", " a", "a ", "a\t", "a\u200a", "\u0100", "\ud800"]) {
      assert.throws(() => blockText([["x", value]]), 'the header "x" can\'t be written as it is')
    }
    assert.strictEqual(idBlock("m 1"), blockText([["Nats-Msg-Id", "m 1"]]))
    assert.strictEqual(idBlock("m1"), blockText([["Nats-Msg-Id", "m1"]]))
    assert.throws(() => idBlock("m\n1"), "can't be written")
    for (const name of ["", "a b", "a:b", "a\r\nb", "a\n", "\u0000", "\u007f", "\u00e9", "a\u200a"]) {
      assert.throws(() => blockText([[name, "v"]]), "can't be written")
    }
  })
})

/** As the client library reads a block: as UTF-8, names to the letter. */
const byLibrary = (block: string): Headers =>
  [...MsgHdrsImpl.decode(Buffer.from(block, "latin1"))].flatMap(([name, values]) =>
    values.map((value) => [name, value] as const),
  )

/** What a text of bytes is where it is read as UTF-8. */
const asText = (value: string): string => Buffer.from(value, "latin1").toString()

const byName = (headers: Headers): ReadonlyMap<string, ReadonlyArray<string>> =>
  new Map([...Map.groupBy(headers, ([name]) => name)].map(([name, all]) => [name, all.map(([, value]) => value)]))

/** Bytes that end a line, a name or a block somewhere, or that some reader trims, come up often. */
const odd = Array.from("\r\n\r\n: \t\u0000\u000b\u0085\u00a0%\u00c2\u00a0\u00e2\u0080\u008a\u00ff").concat(
  "\r\nNats-Msg-Id: x",
  "\r\n\r\n",
)
const bytes: Arbitrary.Arbitrary<string> = Arbitrary.map(
  Arbitrary.array(Arbitrary.all([draw.int(0, 2), draw.int(0, 255)]), { maxLength: 12 }),
  (units) =>
    units
      .map(([kind, unit]) =>
        kind === 0 ? odd[unit % odd.length] : String.fromCharCode(kind === 1 ? unit : 32 + (unit % 95)),
      )
      .join(""),
)
const names = ["Nats-Msg-Id", "nats-rollup", "Original-Nats-X", "Objectlog-Encoded", "original-objectlog-encoded", "x"]
const header: Arbitrary.Arbitrary<readonly [string, string]> = Arbitrary.map(
  Arbitrary.all([draw.int(0, 11), bytes, bytes]),
  ([kind, name, value]) => [names[kind] ?? name, value] as const,
)
/** A block as any client may have sent it. */
const sent = Arbitrary.map(
  Arbitrary.all([Arbitrary.array(header, { maxLength: 6 }), bytes]),
  ([headers, garbage]) =>
    `NATS/1.0\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join("")}${garbage}\r\n\r\n`,
)

describe("what is written parses back to what was meant, here and in the client library", () => {
  it.prop(
    "original headers, whatever they are",
    [sent],
    ([block]) => {
      const originals = parseHeaders(block)
      const own = [["Nats-Msg-Id", "logs-1-2"]] as const
      const keptOnes = originals.map(kept)
      const written = blockText([...own, ...keptOnes])
      assert.deepStrictEqual(parseHeaders(written), [...own, ...keptOnes])
      assert.deepStrictEqual(parseHeaders(written).slice(1).map(unkept), originals)
      const all: Headers = [...own, ...keptOnes]
      assert.deepStrictEqual(byName(byLibrary(written)), byName(all.map(([name, value]) => [name, asText(value)])))
      // The broker acts on nothing but what is ours.
      assert.lengthOf(
        all.filter(([name]) => /^nats-/i.test(name)),
        1,
      )
    },
    { arbitrary: { runs: 1_000 } },
  )

  it.prop("the trace of an event, whatever its sender claims", [bytes, draw.text], ([state, text]) => {
    const parent = formatParent({
      traceId: "4bf92f3577b34da6a3ce929d0e0e4736",
      spanId: "00f067aa0ba902b7",
      sampled: true,
    })
    for (const claimed of [`a=${state}`, `a=b,\r\u200ac=a b: 1`, `a=1,${text}b=2`, headerValue(`a=${state},b=1`)]) {
      const tracestate = checkedState(claimed)
      const written = eventHeaders("logs-1-2", { traceparent: parent, tracestate })
      const meant: Headers = [
        ["Nats-Msg-Id", "logs-1-2"],
        ["traceparent", parent],
        ...(tracestate === undefined ? [] : [["tracestate", tracestate] as const]),
      ]
      assert.deepStrictEqual(parseHeaders(written), meant)
      assert.deepStrictEqual(byLibrary(written), meant)
    }
  })
})
