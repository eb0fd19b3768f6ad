/** A consumer beyond the last message of its stream skips what comes, whichever of its two numbers is beyond. */
import { assert, it } from "@effect/vitest"
import type { JetStreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import { resetAhead } from "../../src/broker/maintain.ts"

it.effect.each([
  { delivered: 5, floor: 5, isAhead: false },
  { delivered: 6, floor: 5, isAhead: true },
  { delivered: 3, floor: 6, isAhead: true },
])("delivered up to $delivered, acknowledged up to $floor, of 5", ({ delivered, floor, isAhead }) =>
  Effect.gen(function* () {
    const deleted: Array<string> = []
    const jsm = {
      consumers: {
        info: async () => ({
          name: "objectlog",
          delivered: { stream_seq: delivered },
          ack_floor: { stream_seq: floor },
        }),
        delete: async (stream: string, consumer: string) => deleted.push(`${stream} ${consumer}`) > 0,
      },
      streams: { info: async () => ({ config: { name: "objectlog_logs" }, state: { last_seq: 5 } }) },
    } as unknown as JetStreamManager
    assert.strictEqual(yield* resetAhead(jsm, "objectlog_logs", "objectlog"), isAhead)
    assert.deepStrictEqual(deleted, isAhead ? ["objectlog_logs objectlog"] : [])
  }),
)
