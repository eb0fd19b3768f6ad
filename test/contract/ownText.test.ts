/** A text with memory of its own is the same text. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { ownText } from "../../src/contract/ownText.ts"

describe("own text", () => {
  it.effect.prop("is the same text", [Schema.String], ([text]) =>
    Effect.sync(() => {
      for (const each of [text, `${text}\ud800${text}`, `${text}\u0000\ufeff\u2028${"é".repeat(20)}`]) {
        assert.strictEqual(ownText(each), each)
      }
    }),
  )
})
