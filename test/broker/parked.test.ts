/** What is parked comes back as it was. */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary } from "effect"
import { parseHeaders } from "../../src/nats/headers.ts"
import { type OriginalRequest, readParked, parkedMessage, shardToken } from "../../src/broker/parked.ts"
import * as draw from "../contract/arbitraries.ts"

const request = (subject: string, text: string): OriginalRequest => ({
  subject,
  seq: 7,
  timestamp: 1_763_922_300_123_456_789n,
  outcomePrefix: "",
  payload: new Uint8Array(),
  headers: () => parseHeaders(text),
})

const readBack = (original: OriginalRequest) =>
  readParked(parseHeaders(parkedMessage("logs_parked.retry", original, 1024 * 1024)!.headers))

const block = Arbitrary.map(
  Arbitrary.array(draw.text, { maxLength: 5 }),
  (lines) => `NATS/1.0\r\n${Buffer.from(lines.join("\r\n")).toString("latin1")}: x\r\nNats-Msg-Id: m1\r\n\r\n`,
)

describe("a request that was parked", () => {
  it.prop("has its stamp, its subject and its headers, whatever these are", [block], ([text]) => {
    const original = request("logs", text)
    const found = readBack(original)!
    const { outcomePrefix, seq, subject, timestamp } = original
    assert.deepStrictEqual(found, { origin: { outcomePrefix, seq, subject, timestamp }, headers: original.headers() })
  })

  it("has no outcome but the one that was added: a sender's header of that name is the sender's", () => {
    const original = request("logs", "NATS/1.0\r\nObjectlog-Outcome: 1-2\r\nObjectlog-Seq: 99\r\n\r\n")
    const found = readBack(original)!
    assert.strictEqual(found.origin.outcomePrefix, "")
    assert.strictEqual(found.origin.seq, original.seq)
    assert.deepStrictEqual(found.headers, original.headers())
    assert.strictEqual(readBack({ ...original, outcomePrefix: "3-4-" })!.origin.outcomePrefix, "3-4-")
  })

  it("keeps a sender's names that look like renamed ones", () => {
    for (const name of ["Original-Foo", "Original-Nats-X", "Original-Original-Nats-X", "nats-x", "Original-"]) {
      const original = request("logs", `NATS/1.0\r\n${name}: x\r\n\r\n`)
      assert.deepStrictEqual(readBack(original)!.headers, [[name, "x"]])
    }
  })

  it("goes on a subject of one token for each shard, of a length that a file name may have", () => {
    const names = ["a", "a.b", "a_2eb", "ü", "x".repeat(128), "x".repeat(129), "x".repeat(1_000), "x".repeat(1_001)]
    const tokens = names.map(shardToken)
    for (const token of tokens) assert.match(token, /^[A-Za-z0-9_-]{1,128}$/)
    assert.strictEqual(new Set(tokens).size, names.length)
    assert.deepStrictEqual(tokens.slice(0, 2), ["a", "a_2eb"])
    assert.strictEqual(tokens[4], names[4])
  })

  it("stands for itself where its subject is one that nothing can be published below", () => {
    assert.isDefined(readBack(request("a.b-c", "")))
    // Its dead letter could be stored nowhere, or as somebody else's.
    for (const subject of ["a..b", ".", "a.*", "a.>", "a.", "x".repeat(257)]) {
      assert.isUndefined(readBack(request(subject, "")), subject)
    }
  })
})
