/** A short run of the fuzzer; `npm run fuzz` makes long ones. */
import { assert, layer } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { fuzz } from "./fuzz.ts"

layer(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2)), { excludeTestServices: true, timeout: "120 seconds" })(
  "bad input",
  (it) => {
    it.effect("2,000 messages of all kinds: each is accounted for, and no valid one is affected", () =>
      Effect.gen(function* () {
        const { byPayload, problems } = yield* fuzz({ messages: 2_000, seed: 1, workers: 1 })
        assert.deepStrictEqual(problems, [])
        const outcomes = new Map<string, number>()
        for (const row of byPayload.values()) {
          for (const [outcome, n] of row) outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + n)
        }
        for (const outcome of [
          "entry",
          "read",
          "invalid_json",
          "invalid_message",
          "invalid_reply_to",
          "invalid_cursor",
        ]) {
          assert.isAbove(outcomes.get(outcome) ?? 0, 10, outcome)
        }
      }),
    )
  },
)
