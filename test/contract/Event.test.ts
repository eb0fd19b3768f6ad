/** Events are read as they are meant, whichever of the two readers takes them. */
import { assert, describe, it } from "@effect/vitest"
import { decodeEvent } from "../../src/contract/Event.ts"

const largest = "18446744073709551615"

describe("decodeEvent", () => {
  for (const [how, write] of [
    ["as workers write it", (fields: string) => `{"type":"append","status":"ok",${fields}}`],
    ["with blanks", (fields: string) => `{ "type": "append", "status": "ok", ${fields} }`],
    ["long", (fields: string) => `{"type":"append","status":"ok",${fields},"more":"${"x".repeat(2_000)}"}`],
    ["in another order", (fields: string) => `{${fields},"status":"ok","type":"append"}`],
  ] as const) {
    it(`an append, ${how}`, () => {
      const stored = `"id":${largest},"position":17,"seq":1017,"timestamp":1763922300123`
      const event = { type: "append", id: largest, position: 17, seq: 1017, timestamp: 1_763_922_300_123 }
      assert.deepStrictEqual(decodeEvent(write(stored)), { ...event, requestId: undefined, duplicate: false } as never)
      assert.deepStrictEqual(decodeEvent(write(`${stored},"request_id":"r"`)), {
        ...event,
        requestId: "r",
        duplicate: false,
      } as never)
      assert.deepStrictEqual(decodeEvent(write(`${stored},"duplicate":true,"request_id":"r"`)), {
        ...event,
        requestId: "r",
        duplicate: true,
      } as never)
    })
  }

  it("a page", () => {
    const entry = { position: 1, seq: 2, timestamp: 3, log: "…" }
    const page = { type: "query", status: "ok", id: 42, snapshot: "1.a", page: 0, last: false, entries: [entry] }
    const read = { type: "query", requestId: undefined, snapshot: "1.a", page: 0, last: false, entries: [entry] }
    assert.deepStrictEqual(decodeEvent(JSON.stringify(page)), { ...read, next: undefined } as never)
    const last = { ...page, last: true, next: "p.1.1", request_id: "r" }
    assert.deepStrictEqual(decodeEvent(JSON.stringify(last)), {
      ...read,
      requestId: "r",
      last: true,
      next: "p.1.1",
    } as never)
  })

  it("a refusal", () => {
    const refused = { type: "append", status: "error", error: { code: "log_too_large", message: "why" } }
    assert.deepStrictEqual(decodeEvent(JSON.stringify({ ...refused, id: 1, request_id: "r" })), {
      type: "refused",
      requestId: "r",
      code: "log_too_large",
      reason: "why",
    } as never)
  })

  it("what is something else is an answer all the same, if it names a request", () => {
    assert.deepStrictEqual(decodeEvent('{"type":"new","request_id":"r"}'), { type: "unknown", requestId: "r" } as never)
    for (const text of ["", "x", "[]", "7", '{"type":"new"}', '{"request_id":7}']) assert.isUndefined(decodeEvent(text))
  })
})
