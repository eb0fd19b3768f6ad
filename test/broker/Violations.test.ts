/** What is remembered of refused rights, and until when. */
import { PermissionViolationError } from "@nats-io/transport-node"
import { assert, describe, it } from "@effect/vitest"
import { Violations } from "../../src/broker/Violations.ts"

const topics = {
  responseTopic: "response",
  deadTopic: "dead",
  parkedTopic: "logs_parked",
  reserveTopic: "logs_reserve",
}
const publishing = (subject: string) => new PermissionViolationError(`no ${subject}`, "publish", subject)

describe("Violations", () => {
  it("are of an operation", () => {
    const violations = new Violations(topics)
    const operations = [
      publishing("$JS.API.CONSUMER.MSG.NEXT.s.c"),
      publishing("$JS.hub.API.CONSUMER.MSG.NEXT.s.c"),
      publishing("$JS.API.STREAM.INFO.s"),
      publishing("$JS.ACK.s.c.1.2.3.4.5"),
      publishing("response"),
      publishing("response.x"),
      publishing("_INBOX.a"),
      publishing("dead.logs"),
      publishing("logs_parked.appends.a"),
      publishing("logs_reserve.probe"),
      publishing("$JS.API.STREAM.CREATE.objectlog_logs_reserve"),
      publishing("$JS.API.INFO"),
      new PermissionViolationError("no", "subscription", "_INBOX.a.*"),
    ].map((error) => violations.note(error, 0)?.operation)
    assert.deepStrictEqual(operations, [
      "pull",
      "pull",
      "request",
      "acknowledge",
      "event",
      "copy",
      undefined,
      "dead letter",
      "park",
      "reserve",
      undefined,
      undefined,
      "receive",
    ])
    assert.deepInclude(violations.counts, { pull: 2, copy: 2, acknowledge: 1, event: 1 })
  })

  it("are news once, until they were not repeated for some time", () => {
    const violations = new Violations(topics)
    assert.isDefined(violations.note(publishing("response"), 0))
    for (let now = 5_000; now <= 60_000; now += 5_000) {
      assert.isUndefined(violations.note(publishing("response"), now))
    }
    assert.lengthOf(violations.current(74_999), 1)
    assert.lengthOf(violations.current(75_000), 0)
    assert.isDefined(violations.note(publishing("response"), 75_000))
    // What could not be acknowledged comes again after half a minute.
    assert.isDefined(violations.note(publishing("$JS.ACK.s.c.1.2.3.4.5"), 75_000))
    assert.isUndefined(violations.note(publishing("$JS.ACK.s.c.1.3.4.5.5"), 110_000))
    assert.lengthOf(violations.current(169_999), 1)
    assert.lengthOf(violations.current(170_000), 0)
  })

  it("are told once for each operation, and remembered one by one", () => {
    const violations = new Violations(topics)
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 300; i++) {
        const news = violations.note(publishing(`$JS.API.CONSUMER.INFO.s.${i}`), round)
        assert.strictEqual(news !== undefined, round === 0)
      }
    }
    violations.note(publishing("response"), 0)
    assert.deepStrictEqual(violations.current(0), [
      { operation: "request", text: "no $JS.API.CONSUMER.INFO.s.0", more: 299 },
      { operation: "event", text: "no response", more: 0 },
    ])
  })

  it("are bounded, whatever subjects there are", () => {
    const violations = new Violations(topics)
    for (let i = 0; i < 10_000; i++) {
      violations.note(publishing(`dead.${i}`), 0)
      violations.note(publishing(`_INBOX.${i}`), 0)
    }
    assert.isAtMost(
      violations.current(0).reduce((sum, { more }) => sum + 1 + more, 0),
      1_024,
    )
    assert.strictEqual(violations.counts.copy, 10_000)
  })
})
