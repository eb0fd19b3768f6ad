/** How a refused message is kept: whole where it fits, otherwise in parts, each of which fits. */
import { assert, describe, it } from "@effect/vitest"
import { deadLetterMessages } from "../../src/broker/deadLetter.ts"
import type { OriginalRequest } from "../../src/broker/parked.ts"
import { LetterAssembly } from "../../src/letters/Letter.ts"
import { firstHeader } from "../../src/nats/headers.ts"

const maxPayload = 10_000

const request = (payload: string, headers: ReadonlyArray<readonly [string, string]> = []): OriginalRequest => ({
  subject: "logs",
  seq: 7,
  timestamp: 1_763_922_300_123_456_789n,
  outcomePrefix: "",
  payload: Buffer.from(payload),
  headers: () => headers,
})

const keep = (original: OriginalRequest, message = "why") =>
  deadLetterMessages("dead", original, { code: "invalid_json", message }, maxPayload)

describe("a dead letter", () => {
  it("tells the beginning of a long reason, in printable ASCII", () => {
    const [kept] = keep(request("x"), `ü\n${"r".repeat(10_000)}`)
    const reason = firstHeader(kept!.headers, "Objectlog-Reason")!
    assert.strictEqual(reason.length, 512)
    assert.match(reason, /^\?\?r+$/)
  })

  it("comes back whole at every size around max_payload, and never exceeds it", () => {
    const own = [["x", "y".repeat(500)]] as const
    const counts = new Set<number>()
    for (let size = 8_000; size <= 10_400; size += 7) {
      const payload = "p".repeat(size)
      const messages = keep(request(payload, own))
      counts.add(messages.length)
      const assembly = new LetterAssembly()
      const letters = messages.flatMap(({ headers, payload: part, subject }, i) => {
        assert.isAtMost(headers.length + part.length, maxPayload)
        const bytes = typeof part === "string" ? Buffer.from(part) : part
        return assembly.accept({ seq: i + 1, timestamp: 1n, subject, headers, payload: bytes }) ?? []
      })
      assert.lengthOf(letters, 1)
      assert.strictEqual(Buffer.from(letters[0]!.payload).toString(), payload)
      assert.deepStrictEqual(letters[0]!.headers, own)
      assert.strictEqual(letters[0]!.missingParts, 0)
    }
    assert.sameMembers([...counts], [1, 2])
  })
})
