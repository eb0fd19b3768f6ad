/** Header texts have a character for each byte. */
import { assert, describe, it } from "@effect/vitest"
import { blockText, firstHeader, headerValue, parseHeaders } from "../../src/broker/headers.ts"

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
})
