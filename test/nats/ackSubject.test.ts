/** The reply subject of a delivery, in the two forms that servers give it. */
import { assert, it } from "@effect/vitest"
import { parseAckSubject } from "../../src/nats/ackSubject.ts"

const expected = { deliveryCount: 3, seq: 12_345, timestamp: 1_763_922_300_123_456_789n, pending: 678 }
const numbers = "3.12345.99.1763922300123456789.678"

it.each([
  ["as it is", `$JS.ACK.objectlog_logs.objectlog.${numbers}`],
  ["with a domain and an account", `$JS.ACK.hub.ABCDEF.objectlog_logs.objectlog.${numbers}`],
  ["without a domain, but with its place", `$JS.ACK._.ABCDEF.objectlog_logs.objectlog.${numbers}`],
  ["with a token at its end", `$JS.ACK.hub.ABCDEF.objectlog_logs.objectlog.${numbers}.x7Hw`],
])("is read %s", (_, subject) => {
  assert.deepStrictEqual(parseAckSubject(subject), expected)
})
