/** What is set aside comes back as it was. */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary } from "effect"
import { parseHeaders } from "../../src/nats/headers.ts"
import { type OriginalRequest, readSetAside, setAsideMessage } from "../../src/broker/setAside.ts"
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
  readSetAside(parseHeaders(setAsideMessage("logs_parked.retry", original, 1024 * 1024)!.headers))

const block = Arbitrary.map(
  Arbitrary.array(draw.text, { maxLength: 5 }),
  (lines) => `NATS/1.0\r\n${Buffer.from(lines.join("\r\n")).toString("latin1")}: x\r\nNats-Msg-Id: m1\r\n\r\n`,
)

describe("a request that was set aside", () => {
  it.prop("has its stamp, its subject and its headers, whatever these are", [block], ([text]) => {
    const original = request("logs", text)
    const found = readBack(original)!
    const { outcomePrefix, seq, subject, timestamp } = original
    assert.deepStrictEqual(found, { origin: { outcomePrefix, seq, subject, timestamp }, headers: original.headers() })
  })

  it("stands for itself where its subject is one that nothing can be published below", () => {
    assert.isDefined(readBack(request("a.b-c", "")))
    // Its dead letter could be stored nowhere, or as somebody else's.
    for (const subject of ["a..b", ".", "a.*", "a.>", "a.", "x".repeat(257)]) {
      assert.isUndefined(readBack(request(subject, "")), subject)
    }
  })
})
