/** When a stream that is missing is made, under the test's clock. */
import type { JetStreamManager, StreamInfo } from "@nats-io/jetstream"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { ensureStream } from "../../src/broker/provision.ts"
import { topics } from "./onServer.ts"

/** A server that has no stream, and says when each is made. */
const emptyServer = (made: Array<string>) =>
  ({
    streams: {
      async *list() {},
      async add({ name }: { readonly name: string }) {
        made.push(name)
        return { created: "now" } as StreamInfo
      },
    },
  }) as unknown as JetStreamManager

describe("a missing stream", () => {
  it.effect("that was there is made again only when the server has had time to delete its files", () =>
    Effect.gen(function* () {
      const made: Array<string> = []
      const again = yield* Effect.forkChild(ensureStream(emptyServer(made), "logs", topics, "there"))
      yield* TestClock.adjust(1_999)
      assert.deepStrictEqual(made, [])
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(again)).name, "objectlog_logs")
      assert.deepStrictEqual(made, ["objectlog_logs"])
    }),
  )

  it.effect("is made at once at the start", () =>
    Effect.gen(function* () {
      const made: Array<string> = []
      yield* ensureStream(emptyServer(made), "dead", topics, "never")
      assert.deepStrictEqual(made, ["objectlog_dead"])
    }),
  )
})
