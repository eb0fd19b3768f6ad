/** What becomes of a letter that is to be tried again. */
import { assert, describe, it } from "@effect/vitest"
import { NotRetried, retried } from "../../src/letters/deadLetters.ts"
import type { Letter } from "../../src/letters/Letter.ts"
import { parseHeaders } from "../../src/nats/headers.ts"

const subjects = { logsTopic: "logs", queryTopic: "query", deadTopic: "dead" }
const maxPayload = 1_000

const letter = (fields: Partial<Letter>): Letter => ({
  seq: 12,
  seqs: [12],
  refusedAt: 99n,
  code: "read_failed",
  reason: "why",
  subject: "query",
  stamp: { seq: 3, timestamp: 5n },
  headers: [],
  payload: Buffer.from('{"id":1}'),
  missingParts: 0,
  ...fields,
})

const messageOf = (given: Letter, payload: Uint8Array = given.payload) => {
  const found = retried(given, payload, subjects, maxPayload)
  if (found instanceof NotRetried) return assert.fail(found.message)
  return { ...found, headers: parseHeaders(found.headers) }
}

const refusal = (given: Letter, payload: Uint8Array = given.payload) => {
  const found = retried(given, payload, subjects, maxPayload)
  return found instanceof NotRetried ? found.message : assert.fail("it is retried")
}

describe("a letter is tried again", () => {
  it("a read: with its headers, but for what the broker was told and what is odd", () => {
    const headers = [
      ["x", "y"],
      ["Nats-Expected-Last-Sequence", "0"],
      ["nats-msg-id", "m1"],
      ["bad name", "z"],
      ["traceparent", "00-1-2-01"],
    ] as const
    const { headers: sent, payload, subject } = messageOf(letter({ headers }))
    assert.strictEqual(subject, "query")
    assert.deepStrictEqual(payload, Buffer.from('{"id":1}'))
    assert.deepStrictEqual(sent, [
      ["Nats-Msg-Id", "12-99"],
      ["x", "y"],
      ["traceparent", "00-1-2-01"],
    ])
  })

  it("has one id for each payload, so that a repetition is the same message", () => {
    const id = (payload?: Uint8Array) => messageOf(letter({}), payload).headers[0]![1]
    const given = letter({})
    const same = messageOf(given, given.payload).headers[0]![1]
    assert.strictEqual(same, "12-99")
    const [one, again, other] = [id(Buffer.from("1")), id(Buffer.from("1")), id(Buffer.from("2"))]
    assert.strictEqual(one, again)
    assert.strictEqual(new Set([same, one, other]).size, 3)
  })

  it("not where nothing can come of it", () => {
    assert.include(refusal(letter({ stamp: undefined })), "objectlog did not write it")
    assert.include(refusal(letter({ missingParts: 1 })), "1 of its parts are missing")
    assert.include(refusal(letter({ subject: "other" })), "is neither that of appends")
    for (const subject of ["logs", "query"]) {
      assert.include(refusal(letter({ subject, payload: Buffer.alloc(maxPayload) })), "exceed the 1000 bytes")
    }
    // With a payload of its own it is whole again.
    messageOf(letter({ missingParts: 1 }), Buffer.from('{"id":2}'))
  })
})
