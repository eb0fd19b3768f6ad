import { assert, describe, it } from "@effect/vitest"
import { saslprep } from "../../src/shard/saslprep.ts"

describe("saslprep", () => {
  it("leaves ASCII as it is", () => {
    const ascii = Array.from({ length: 128 }, (_, code) => String.fromCharCode(code)).join("")
    assert.strictEqual(saslprep(ascii), ascii)
  })

  it("prepares the examples of RFC 4013", () => {
    assert.strictEqual(saslprep("I\u00adX"), "IX")
    assert.strictEqual(saslprep("USER"), "USER")
    assert.strictEqual(saslprep("\u00aa"), "a")
    assert.strictEqual(saslprep("\u2168"), "IX")
  })
})
